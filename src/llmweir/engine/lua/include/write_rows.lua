-- Counts one request into every row and gives it a lease, unless it has one already: into its window if it is the
-- user's own or has a limit of requests or tokens, into its budget if it is the user's own or has one. The lease's text
-- is 'expiry_ms second tokens nanos period model' with the user's own period, and a line a row of a model:
-- '1 period account'; 0 = not its window, period - = not its budget.
local function write_rows(rows, second, use, leases, id, model, tokens, nanos, expiry, first_expiry)
  local count, write = #rows, { 'HSET', use, nil, nil, nil, nil }
  local lease = format('%d %d %d %d %s %s', expiry, second, tokens, nanos, rows[1].period, model)
  for index = 2, count do
    local row = rows[index]
    lease = lease .. ((row.rpm >= 0 or row.tpm >= 0) and '\n1 ' or '\n0 ') .. (row.budget >= 0 and row.period or '-')
      .. ' ' .. row.name
  end
  if call('HSETNX', leases, id, lease) == 0 then return end
  for index = 1, count do
    local row = rows[index]
    if row.moved then
      --- @include write_window
      write_window(row.moved)
      row.moved = false
    end
    if index == 1 or row.rpm >= 0 or row.tpm >= 0 then
      row.requests, row.slot_requests = row.requests + 1, row.slot_requests + 1
      row.tokens, row.slot_tokens = row.tokens + tokens, row.slot_tokens + tokens
    end
    if index == 1 or row.budget >= 0 then row.held = row.held + nanos end
    write[2 * index + 1], write[2 * index + 2] = row.name, format('%d %d %d %d %d %d %s', second, row.requests,
      row.slot_requests, row.tokens, row.slot_tokens, row.held, row.money)
  end
  rows[1].running = rows[1].running + 1
  call(unpack(write))
  if not first_expiry or expiry < first_expiry + 0 then call('HSET', use, 'x', format('%d', expiry)) end
end

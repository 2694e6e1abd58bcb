-- Counts one request into every row and gives it a lease, unless it has one already: into its window if it is the
-- user's own or has a limit of requests or tokens, into its budget if it is the user's own or has one. The lease's text
-- is 'expiry_ms second tokens nanos model' and a line a row: '1 period account'; 0 = not its window, period - = not its
-- budget.
local function write_rows(rows, second, use, leases, id, model, tokens, nanos, expiry, first_expiry)
  local lease = string.format('%d %d %d %d %s', expiry, second, tokens, nanos, model)
  for index = 1, #rows do
    local row = rows[index]
    lease = lease .. ((index == 1 or row.rpm >= 0 or row.tpm >= 0) and '\n1 ' or '\n0 ')
      .. ((index == 1 or row.budget >= 0) and row.period or '-') .. ' ' .. row.name
  end
  if call('HSETNX', leases, id, lease) == 0 then return end
  local write = { 'HSET', use, nil, nil }
  for index = 1, #rows do
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
    row.running = row.running + 1
    write[2 * index + 1], write[2 * index + 2] = row.name, string.format('%d %d %d %d %d %d %d %s', second,
      row.requests, row.slot_requests, row.tokens, row.slot_tokens, row.running, row.held, row.money)
  end
  call(unpack(write))
  if not first_expiry or expiry < first_expiry + 0 then call('HSET', use, 'x', string.format('%d', expiry)) end
end

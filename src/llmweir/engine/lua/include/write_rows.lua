-- Counts one request into every row and gives it a lease, unless it has one already: into its window if it has a limit
-- of requests or tokens, into its budget if it has one; into both if it is the user's own or the API key's. The lease
-- (LAYOUT.lease) holds its end in ms, the second, tokens and nanos, the user's own period, the id of a key that has no row
-- ('-' = none) and the model; then (LAYOUT.lease_row) for each further row whether it counts in its window, the period
-- of its budget (-1 = it does not count there) and its account.
local function write_rows(rows, second, use, leases, id, key, model, tokens, nanos, expiry, first_expiry)
  local count, write = #rows, { 'HSET', use, nil, nil, nil, nil }
  local lease = pack(LAYOUT.lease, expiry, second, tokens, nanos, rows[1].period, key, model)
  for index = 2, count do
    local row = rows[index]
    local is_key = byte(row.name) == 107
    lease = lease .. pack(LAYOUT.lease_row, (is_key or row.rpm >= 0 or row.tpm >= 0) and 1 or 0,
      (is_key or row.budget >= 0) and row.period or -1, row.name)
  end
  if call('HSETNX', leases, id, lease) == 0 then return end
  for index = 1, count do
    local row = rows[index]
    if row.moved then
      --- @include write_window
      write_window(row.moved)
      row.moved = false
    end
    local whole = index == 1 or byte(row.name) == 107
    if whole or row.rpm >= 0 or row.tpm >= 0 then
      row.requests, row.slot_requests = row.requests + 1, row.slot_requests + 1
      row.tokens, row.slot_tokens = row.tokens + tokens, row.slot_tokens + tokens
    end
    if whole or row.budget >= 0 then row.held = row.held + nanos end
    row.running = row.running + 1
    write[2 * index + 1], write[2 * index + 2] = row.name, pack(LAYOUT.account, second, row.requests, row.slot_requests,
      row.tokens, row.slot_tokens, row.running, row.held, row.spent, row.period, row.ends)
  end
  call(unpack(write))
  if not first_expiry or expiry < first_expiry + 0 then call('HSET', use, 'x', format('%d', expiry)) end
end

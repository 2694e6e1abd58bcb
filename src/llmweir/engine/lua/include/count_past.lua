--- @include write_window
--- @include still_runs
-- Counts a request that was admitted at `at`, in ms, in one row (see `open_rows`), and writes its account: in its window
-- while the second of then is still inside the span, in its budget while the period of then still runs; which is returned.
local function count_past(record, use, windows, row, user_ends, at, second, tokens, nanos)
  local whole, at_second = byte(row.name) ~= 109, math.min(floor(at / 1000), second)
  if row.moved then write_window(row.moved) end
  if second - at_second <= 60 and (whole or row.rpm >= 0 or row.tpm >= 0) then
    row.requests, row.tokens = row.requests + 1, row.tokens + tokens
    if at_second == second then
      row.slot_requests, row.slot_tokens = row.slot_requests + 1, row.slot_tokens + tokens
    else
      local ring = windows .. ':' .. row.name
      call('HINCRBY', ring, at_second % 61, 1)
      call('HINCRBY', ring, at_second % 61 + 61, tokens)
      call('PEXPIRE', ring, 125000)
    end
  end
  local is_running = still_runs(record, row, user_ends, at)
  if is_running and (whole or row.budget >= 0) then row.spent = row.spent + nanos end
  call('HSET', use, row.name, pack(LAYOUT.account, second, row.requests, row.slot_requests, row.tokens, row.slot_tokens,
    row.running, row.held, row.spent, row.period, row.ends))
  return is_running
end

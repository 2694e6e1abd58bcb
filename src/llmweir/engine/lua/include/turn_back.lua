-- Takes a window whose clock was set back by more than its span to `second`: all that is counted has happened now.
-- That is written at once, even if the request is refused: else the same would be said again at the next one.
local function turn_back(row, use, ring, second)
  row.slot_requests, row.slot_tokens = row.requests, row.tokens
  call('DEL', ring)
  call('HSET', use, row.name, pack(LAYOUT.account, second, row.requests, row.slot_requests, row.tokens, row.slot_tokens,
    row.running, row.held, row.spent, row.period, row.ends))
end

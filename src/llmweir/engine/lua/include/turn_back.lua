-- Takes a window whose clock was set back by more than its span to `second`: all that is counted has happened now.
-- That is written at once, even if the request is refused: else the same would be said again at the next one.
local function turn_back(row, use, ring, second)
  row.slot_requests, row.slot_tokens = row.requests, row.tokens
  call('DEL', ring)
  call('HSET', use, row.name, format('%d %d %d %d %d %d %s', second, row.requests, row.slot_requests,
    row.tokens, row.slot_tokens, row.held, row.money))
end

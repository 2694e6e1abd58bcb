-- Moves the window of a row on from the second `last`, without writing: slots that leave the span are subtracted.
-- `row.moved` is for `write_window`: the ring's key, the slot that was the running one, what it counted, and the ring's
-- fields that were `left` (nil: all of them).
local function slide(row, ring, last, second)
  local moved = { ring = ring, last = last, requests = row.slot_requests, tokens = row.slot_tokens }
  row.moved = moved
  row.slot_requests, row.slot_tokens = 0, 0
  if second - last > 60 then
    row.requests, row.tokens = 0, 0
    return
  end
  local left = {}
  for gone = last + 1, second do left[#left + 1], left[#left + 2] = gone % 61, gone % 61 + 61 end
  local counts = call('HMGET', ring, unpack(left))
  for index = 1, #left, 2 do
    row.requests, row.tokens = row.requests - (counts[index] or 0), row.tokens - (counts[index + 1] or 0)
  end
  moved.left = left
end

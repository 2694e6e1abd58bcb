-- How long, in ms, until `excess` of what the window of a row has counted has left it, if nothing else comes: the
-- first second in which enough of the oldest slots have gone. `kind` is 0 for requests, 61 for tokens: where slots lie.
local function window_wait(row, ring, kind, excess, second, now)
  local oldest, moved, fields, slots = second - 60, row.moved, {}, {}
  if not moved or moved.left then
    for slot = oldest, second do fields[#fields + 1] = slot % 61 + kind end
    slots = call('HMGET', ring, unpack(fields))
  end
  if moved and moved.left then -- but that is not written: the ring does not know yet
    for passed = moved.last + 1, second do slots[passed - oldest + 1] = 0 end
    slots[moved.last - oldest + 1] = kind == 0 and moved.requests or moved.tokens
  end
  for index = 1, 60 do
    excess = excess - (slots[index] or 0)
    if excess <= 0 then return (oldest + index - 1 + 61) * 1000 - now end
  end
  return (second + 61) * 1000 - now
end

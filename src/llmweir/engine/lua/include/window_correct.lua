-- Corrects what a slot counted ('r' requests or 't' tokens), while the slot of `second` is inside the stored span.
-- Nothing is dropped here: sum and slot move together, so the window stays true of its last second.
local function window_correct(key, second, kind, difference)
  local slot = kind .. second % 61
  local read = call('HMGET', key, 's', kind, slot)
  local last = tonumber(read[1])
  if not last or second > last or second < last - 60 or not read[3] then return end
  call('HSET', key, kind, read[2] + difference, slot, read[3] + difference)
end

-- Adds to what a slot of a ring has, but takes no more from it than that; returns what it was.
local function correct_slot(ring, slot, more)
  local left = call('HINCRBY', ring, slot, more)
  if left < 0 then
    call('HDEL', ring, slot)
    return more - left
  end
  if left == more then call('PEXPIRE', ring, 125000) end -- it may be a new one
  return more
end

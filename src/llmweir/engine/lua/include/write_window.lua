-- Writes the ring of a window that has moved: what was the running slot goes in, what was passed over goes out. The
-- slot that runs now is in the account; its old turn in the ring is overwritten when it is its turn again.
local function write_window(moved)
  if not moved.left then
    call('DEL', moved.ring)
    return
  end
  local slot, left = moved.last % 61, moved.left
  call('HSET', moved.ring, slot, moved.requests, slot + 61, moved.tokens)
  if #left > 2 then call('HDEL', moved.ring, unpack(left, 1, #left - 2)) end
  call('PEXPIRE', moved.ring, 125000)
end

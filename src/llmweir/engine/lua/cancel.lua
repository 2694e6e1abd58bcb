-- Undoes an admission as if it had never been, also one that reaches Redis only after this.
--
-- KEYS[1] the user's record     KEYS[2] its leases
-- ARGV[1] request id            ARGV[2] time in ms, '' = the server's     ARGV[3] tombstone's life in ms
--
-- Reply: { undone 0 | 1 }
--
--- @include clock_ms
--- @include charge
--- @include is_tombstone
--- @include bury
local record, leases, id = KEYS[1], KEYS[2], ARGV[1]

-- Read: the lease, or the memory of one that expired.
local lease, memo_key = call('HGET', leases, id), record .. SUFFIX.memo .. id
local memo = not lease and call('GET', memo_key)
if memo == 'done' or lease and is_tombstone(lease) then return { 0 } end

-- Write.
if not lease and not memo then
  bury(record, id, clock_ms(ARGV[2]) + ARGV[3])
  return { 0 }
end
charge(record, lease or memo, not lease, 0, 0, 0, 0, true)
if lease then call('HDEL', leases, id) else call('DEL', memo_key) end
return { 1 }

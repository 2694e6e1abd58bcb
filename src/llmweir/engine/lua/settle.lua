-- Settles one admitted request with what it really used; a second settlement of the same id changes nothing.
--
-- KEYS[1] the user's record     KEYS[2] its leases
-- ARGV[1] request id            ARGV[2] input tokens   ARGV[3] output tokens
-- ARGV[4] cost in nanos         ARGV[5] 1 = the request failed upstream
--
-- Reply: { settled 0 | 1, spend, soft budget }    in nanos, where this crossed the soft budget; else { settled }
--
--- @include charge
--- @include is_tombstone
local id = ARGV[1]

-- Read: the lease, or the memory of one that expired.
local lease = call('HGET', KEYS[2], id)
local memo = not lease and call('GET', KEYS[1] .. SUFFIX.memo .. id)
if not lease and (not memo or memo == 'done') or lease and is_tombstone(lease) then return { 0 } end

-- Write.
local spend, soft_budget = charge(KEYS[1], lease or memo, not lease, ARGV[2] + 0, ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0)
if lease then
  call('HDEL', KEYS[2], id)
else
  call('DEL', KEYS[1] .. SUFFIX.memo .. id)
end
if spend then return { 1, spend, soft_budget } end
return { 1 }

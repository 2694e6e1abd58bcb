-- Settles one admitted request with what it really used; a second settlement of the same id changes nothing.
--
-- KEYS[1] the user's record     KEYS[2] its leases     KEYS[3] its held
-- ARGV[1] request id            ARGV[2] input tokens   ARGV[3] output tokens
-- ARGV[4] cost in nanos         ARGV[5] 1 = the request failed upstream         ARGV[6] 1 = it never was: undo it all
--
-- Reply: { settled 0 | 1, spend, soft budget }    in nanos, where this crossed the soft budget; else { settled }
--
--- @include charge
local actual = { input = tonumber(ARGV[2]), output = tonumber(ARGV[3]), nanos = tonumber(ARGV[4]),
  failed = tonumber(ARGV[5]), cancelled = ARGV[6] == '1' }

-- Read: the reservation, or the memory of one that expired.
local held = call('HGET', KEYS[3], ARGV[1])
local memo = not held and call('GET', KEYS[1] .. SUFFIX.memo .. ARGV[1])
if not held and not memo then return { 0 } end

-- Write.
local spend, soft_budget = charge(KEYS[1], held or memo, actual, not held)
if memo then
  call('DEL', KEYS[1] .. SUFFIX.memo .. ARGV[1])
else
  call('HDEL', KEYS[3], ARGV[1])
  call('ZREM', KEYS[2], ARGV[1])
end
if spend then return { 1, spend, soft_budget } end
return { 1 }

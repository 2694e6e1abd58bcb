-- Reads a user's record and its account as they stand now.
--
-- KEYS[1] the user's record     KEYS[2] its doc     KEYS[3] its use
-- ARGV[1] time in ms, '' = the server's             ARGV[2] memo life in ms
--
-- Reply: { doc, use, record } as flat lists of fields and values, or false where there is no such user
--
--- @include clock_ms
--- @include expire_leases
--- @include roll_periods
if call('EXISTS', KEYS[1]) == 0 then return false end
local now = clock_ms(ARGV[1])
expire_leases(KEYS[1], now, ARGV[2])
roll_periods(KEYS[1], now)
return { call('HGETALL', KEYS[2]), call('HGETALL', KEYS[3]), call('HGETALL', KEYS[1]) }

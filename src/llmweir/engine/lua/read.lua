-- Reads a user's record and its account as they stand now.
--
-- KEYS[1] the user's record     KEYS[2] its doc     KEYS[3] its use
-- ARGV[1] time in ms, '' = the server's             ARGV[2] memo life in ms
--
-- Reply: { doc, use, record } as flat lists of fields and values, or false where there is no such user.
-- use: `s` `h` nanos spent and held, `e` end of the period in ms (absent: none), `r` `t` requests and tokens of the
--      window, `w` ms until it is empty, `n` requests in flight; the same of an entry by its name (`bs:` `bh:` `be:`
--      `r:` `t:` `w:`); and the fields of the hash that are no accounts, as they are (`s:MODEL` `j` `sb` `sm` `x`)
--
--- @include clock_ms
--- @include catch_up
--- @include standing
if call('EXISTS', KEYS[1]) == 0 then return false end
local now = clock_ms(ARGV[1])
catch_up(KEYS[1], now, ARGV[2])
return { call('HGETALL', KEYS[2]), standing(KEYS[3], KEYS[1] .. SUFFIX.window, KEYS[1] .. SUFFIX.leases, now), call('HGETALL', KEYS[1]) }

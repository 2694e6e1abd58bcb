-- Reads a user's record and its account as they stand now; what is due by then is written.
--
-- KEYS[1] the user's record     KEYS[2] its doc     KEYS[3] its use
-- ARGV[1] time in ms, '' = the server's             ARGV[2] memo life in ms
--
-- Reply: { doc, accounts, use, keys, expired }, or false where there is no such user; doc, use and keys are flat lists of
-- fields and values, keys those of the record that are API keys (`k:HASH`). accounts: a list each, { account, requests and
-- tokens of its window, ms until that is empty, requests in flight, nanos held, nanos spent, end of the period in ms
-- (-1: never, a model's: with the user's) }, the user's own first. use: the fields of that hash that are no accounts
-- (`s:MODEL` its nanos spent in the period, `ks:ID` `j` `sb` `sm` `x`). expired: how many leases ended and were charged
--
--- @include clock_ms
--- @include catch_up
--- @include standing
--- @include key_fields
if call('EXISTS', KEYS[1]) == 0 then return false end
local now = clock_ms(ARGV[1])
local expired = catch_up(KEYS[1], now, ARGV[2])
local accounts, use = standing(KEYS[3], KEYS[1] .. SUFFIX.window, now)
return { call('HGETALL', KEYS[2]), accounts, use, key_fields(KEYS[1]), expired }

-- Says whether a caller may come in, and who it is, without counting anything.
--
-- KEYS[1] the user's record     KEYS[2] its doc
-- ARGV[1] time in ms, '' = the server's    ARGV[2] API key's hash, '' = the app named the caller
-- ARGV[3] 1 = the data plane is meant, which some roles may not use     ARGV[4] version of the profile the worker has
-- ARGV[5] digest of the default user's limits, '' = none
--
-- Reply: { 'caller', reason }     as admit's
--        { 'admitted', false, version, profile }
--
--- @include clock_ms
--- @include caller_verdict
local record = call('HMGET', KEYS[1], 'v', 'k:' .. ARGV[2], 'bl', 'nd', 'df')
local reason = caller_verdict(record[1], ARGV[2] ~= '', record[2], record[3], ARGV[3] == '1' and record[4],
  clock_ms(ARGV[1]))
if reason then return { 'caller', reason } end
if ARGV[5] ~= '' and record[5] and record[5] ~= ARGV[5] then return { 'caller', 'stale_default' } end
if record[1] == ARGV[4] then return { 'admitted', false, record[1], false } end
return { 'admitted', false, record[1],
  call('HMGET', KEYS[2], 'user_alias', 'user_role', 'teams', 'metadata', 'guardrails', 'permissions') }

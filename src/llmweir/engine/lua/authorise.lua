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
local record = call('HMGET', KEYS[1], 'p', 'k:' .. ARGV[2])
local version, flags, _
if record[1] then _, _, _, _, version, flags = unpack_from(LAYOUT.record, record[1]) end
local now = clock_ms(ARGV[1])
local reason = caller_verdict(KEYS[1], version, flags, ARGV[2] ~= '', record[2], ARGV[3] == '1', ARGV[5], now)
if reason then return { 'caller', reason } end
if version == ARGV[4] then return { 'admitted', false, version, false } end
return { 'admitted', false, version,
  call('HMGET', KEYS[2], 'user_alias', 'user_role', 'teams', 'metadata', 'guardrails', 'permissions',
    'key:' .. ARGV[2]) }

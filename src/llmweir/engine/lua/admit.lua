-- Admits one request against all limits of its caller, or says which is in the way and until when.
--
-- KEYS[1] the user's record     KEYS[2] its use        KEYS[3] its windows (KEYS[3]:account)
-- KEYS[4] its leases            KEYS[5] its doc
-- ARGV[1] request id            ARGV[2] time in ms, '' = the server's
-- ARGV[3] API key's hash, '' = the app named the caller
-- ARGV[4] digest of the default user's limits, '' = none
-- ARGV[5] model asked for, '' = none    ARGV[6] model the holds were priced for (ARGV[5] through its alias)
-- ARGV[7] tokens asked at least: more than the limit itself can never fit
-- ARGV[8] tokens to hold                ARGV[9] nanos asked at least
-- ARGV[10] nanos to hold, -1 = the model has no price
-- ARGV[11] lease life in ms             ARGV[12] memo life in ms
-- ARGV[13] version of the profile the worker has        ARGV[14] keys of the body's `cache` object, a line each
--
-- Reply: { 'caller', reason }   reason: unknown_user stale_default unknown_key key_expired key_blocked user_blocked
--                               role_not_allowed model_not_allowed cache_control_not_allowed model_not_priced
--        { 'alias', model }     the holds must be made for this model: ask again
--        { 'admitted', state, version, profile, tight 0 | 1, expired }
--                               profile: seven JSON texts, or false if the worker has this version
--        { 'limit', state, name, account, kind, limit, used, asked, wait_ms, expired }
--                               name: rpm tpm parallel budget; account: u, k:ID or m:ENTRY, whose limit it is
--                               kind: wait stop never; wait_ms -1 = unknown
-- expired: how many leases of the user had ended and were charged now, where that was looked at; else left out
-- state: rpm limit, used, user's window reset_ms, tpm limit, used, model rpm limit, used, model tpm limit, used,
--        parallel limit, used, budget limit, used, reset_ms, model budget limit, used, reset_ms; -1 = none
--
--- @include clock_ms
--- @include open_rows
--- @include decide
--- @include write_rows
--- @include state_of
--- @include is_tight
local id, model, now = ARGV[1], ARGV[6], clock_ms(ARGV[2])

-- Read: who is it, what may they do?
local record = call('HMGET', KEYS[1], 'p', 'k:' .. ARGV[3], 'a:' .. ARGV[5], 'e:' .. model)
local rpm, tpm, parallel, budget, version, flags, widths
if record[1] then rpm, tpm, parallel, budget, version, flags, widths = unpack_from(LAYOUT.record, record[1]) end
local key, key_line = match(record[2] or '', '^0 0 (%d+)$'), nil
local target = record[3] or ARGV[5]
if flags ~= '-' or not key then
  --- @include caller_verdict
  local reason, key_id, key_limits = caller_verdict(KEYS[1], version, flags, ARGV[3] ~= '', record[2], true, ARGV[4], now)
  if reason then return { 'caller', reason } end
  key = key_id
  if key_limits ~= '' then
    --- @include key_row
    key_line, target, reason = key_row(KEYS[1], key, key_limits, ARGV[5], target)
    if reason then return { 'caller', reason } end
    key = '-'
  end
end
if target ~= model then return { 'alias', target } end
if flags ~= '-' then
  --- @include model_verdict
  local reason = model_verdict(KEYS[1], flags, model, ARGV[14])
  if reason then return { 'caller', reason } end
end

-- Read: the limits, a row a scope, and where each stands.
local others = record[4]
if not others then
  if widths ~= '-' then
    --- @include longest_prefix
    others = longest_prefix(KEYS[1], 'e:', model, widths)
  end
  others = others or ''
end
if key_line then others = key_line .. others end
local expired
local rows, first_expiry, due, second = open_rows(rpm, tpm, parallel, budget, others, KEYS[2], KEYS[3], now)
if due then
  --- @include catch_up
  expired = catch_up(KEYS[1], now, ARGV[12])
  rows, first_expiry, due, second = open_rows(rpm, tpm, parallel, budget, others, KEYS[2], KEYS[3], now)
end

-- Decide.
local least_tokens, least_nanos, priced_nanos = ARGV[7] + 0, ARGV[9] + 0, ARGV[10] + 0
local fits, tokens, nanos = decide(rows, least_tokens, ARGV[8] + 0, least_nanos, priced_nanos)
if fits == nil then return { 'caller', 'model_not_priced' } end

-- Write all, or nothing. A request id that has a lease was counted before: a retry after a lost reply.
if fits then
  write_rows(rows, second, KEYS[2], KEYS[4], id, key, model, tokens, nanos, now + ARGV[11], first_expiry)
elseif call('HEXISTS', KEYS[4], id) == 0 then
  --- @include refuse
  return refuse(rows, second, KEYS[3], least_tokens, tokens, least_nanos, nanos, priced_nanos > 0, now,
    state_of(rows, second, now), expired)
end
local state = state_of(rows, second, now)
if version == ARGV[13] then return { 'admitted', state, version, false, is_tight(rows, tokens, nanos), expired } end
return { 'admitted', state, version, call('HMGET', KEYS[5], 'user_alias', 'user_role', 'teams', 'metadata', 'guardrails',
  'permissions', 'key:' .. ARGV[3]), is_tight(rows, tokens, nanos), expired }

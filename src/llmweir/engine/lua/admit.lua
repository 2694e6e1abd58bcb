-- Admits one request against all limits of its caller, or says which is in the way and until when.
--
-- KEYS[1] the user's record     KEYS[2] its use        KEYS[3] its window (a model's: KEYS[3]:entry)
-- KEYS[4] its leases            KEYS[5] its held       KEYS[6] its doc
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
--        { 'admitted', state, version, profile }    profile: six JSON texts, or false if the worker has this version
--        { 'limit', state, name, entry, kind, limit, used, asked, wait_ms }   kind: wait stop never; wait_ms -1 = unknown
-- state: rpm limit, used, user's window reset_ms, tpm limit, used, model rpm limit, used, model tpm limit, used,
--        parallel limit, used, budget limit, used, reset_ms, model budget limit, used, reset_ms; -1 = none
--
--- @include clock_ms
--- @include caller_verdict
--- @include entry_of
--- @include catch_up
--- @include window_open
--- @include window_add
--- @include refuse
local id, model, now = ARGV[1], ARGV[6], clock_ms(ARGV[2])

-- Read: who is it, what may they do.
local record = call('HMGET', KEYS[1], 'v', 'k:' .. ARGV[3], 'bl', 'nd', 'df', 'a:' .. ARGV[5], 'ml', 'm:' .. model,
  'wm', 'cc', 'rl', 'tl', 'pl', 'b', 'r:' .. model, 't:' .. model, 'b:' .. model, 'wr', 'wt', 'wb')
local reason = caller_verdict(record[1], ARGV[3] ~= '', record[2], record[3], record[4], now)
if reason then return { 'caller', reason } end
if ARGV[4] ~= '' and record[5] and record[5] ~= ARGV[4] then return { 'caller', 'stale_default' } end
if (record[6] or ARGV[5]) ~= model then return { 'alias', record[6] or ARGV[5] } end
if record[7] and model ~= '' and not entry_of(KEYS[1], 'm:', model, record[8], record[9]) then
  return { 'caller', 'model_not_allowed' }
end
if record[10] then
  for control in string.gmatch(ARGV[14], '[^\n]+') do
    if call('HEXISTS', KEYS[1], 'c:' .. control) == 0 then return { 'caller', 'cache_control_not_allowed' } end
  end
end

-- Read: the limits, and where each stands.
local parallel, budget = tonumber(record[13]), tonumber(record[14])
local rpm_entry, model_rpm = entry_of(KEYS[1], 'r:', model, record[15], record[18])
local tpm_entry, model_tpm = entry_of(KEYS[1], 't:', model, record[16], record[19])
local budget_entry, model_budget = entry_of(KEYS[1], 'b:', model, record[17], record[20])
if (budget or budget_entry) and ARGV[10] == '-1' then return { 'caller', 'model_not_priced' } end
local entry = budget_entry or ''
local use = { 'x', 'e', 'p', 's', 'h', 'be:' .. entry, 'bp:' .. entry, 'bs:' .. entry, 'bh:' .. entry }
local stands = call('HMGET', KEYS[2], unpack(use))
if tonumber(stands[1] or now + 1) <= now or tonumber(stands[2] or now + 1) <= now or tonumber(stands[6] or now + 1) <= now then
  catch_up(KEYS[1], now, ARGV[12])
  stands = call('HMGET', KEYS[2], unpack(use))
end
local second, windows = floor(now / 1000), {}
windows[1] = window_open(KEYS[3], second, '', false, tonumber(record[11]), tonumber(record[12]))
if rpm_entry then
  local both = rpm_entry == tpm_entry and tonumber(model_tpm) or nil
  windows[2] = window_open(KEYS[3] .. ':' .. rpm_entry, second, 'model_', rpm_entry, tonumber(model_rpm), both)
end
if tpm_entry and tpm_entry ~= rpm_entry then
  windows[#windows + 1] = window_open(KEYS[3] .. ':' .. tpm_entry, second, 'model_', tpm_entry, nil, tonumber(model_tpm))
end
local in_flight = parallel and call('ZCARD', KEYS[4]) or 0
local budgets = { { scope = '', entry = false, field = 'h', limit = budget, ends = tonumber(stands[2]),
  spent = tonumber(stands[4] or 0), held = tonumber(stands[5] or 0) } }
if budget_entry then
  budgets[2] = { scope = 'model_', entry = budget_entry, field = use[9], limit = tonumber(string.match(model_budget, '^%d+')),
    ends = tonumber(stands[6] or stands[2]), spent = tonumber(stands[8] or 0), held = tonumber(stands[9] or 0) }
end

-- Decide. A hold is never larger than a limit itself, nor than what spending alone has left of a budget.
local asked_tokens, asked_nanos = tonumber(ARGV[7]), tonumber(ARGV[9])
local hold_tokens, hold_nanos = tonumber(ARGV[8]), math.max(0, tonumber(ARGV[10]))
local costs, fits = hold_nanos > 0, not parallel or in_flight < parallel
for index = 1, #windows do
  local tpm = windows[index].tpm
  if tpm and hold_tokens > tpm then hold_tokens = math.max(tpm, asked_tokens) end
end
for index = 1, #budgets do
  local row = budgets[index]
  if row.limit and hold_nanos > row.limit - row.spent then hold_nanos = math.max(row.limit - row.spent, asked_nanos) end
end
for index = 1, #windows do
  local row = windows[index]
  if row.rpm and row.requests >= row.rpm then fits = false end
  if row.tpm and hold_tokens > 0 and row.tokens + hold_tokens > row.tpm then fits = false end
end
for index = 1, #budgets do
  local row = budgets[index]
  if row.limit and (row.spent + row.held + hold_nanos > row.limit or costs and row.spent >= row.limit) then fits = false end
end

-- Write all, or nothing. A request id that is held already was counted before: a retry after a lost reply.
if fits then
  local reservation = string.format('%.0f %.0f %.0f %s %s\n%s\n%s\n%s\n%s', windows[1].second, hold_tokens, hold_nanos,
    stands[3] or '0', stands[7] or '0', model, rpm_entry or '', tpm_entry or '', budget_entry or '')
  if call('HSETNX', KEYS[5], id, reservation) == 1 then
    local expiry, write = now + ARGV[11], {}
    for index = 1, #budgets do
      local row = budgets[index]
      row.held = row.held + hold_nanos
      write[index * 2 - 1], write[index * 2] = row.field, row.held
    end
    if not stands[1] then write[#write + 1], write[#write + 2] = 'x', expiry end
    call('HSET', KEYS[2], unpack(write))
    call('ZADD', KEYS[4], expiry, id)
    for index = 1, #windows do window_add(windows[index], hold_tokens) end
    in_flight = in_flight + 1
  end
end
local user, entry_row = budgets[1], budgets[2] or { spent = 0, held = 0 }
local by_entry = { [rpm_entry or ''] = windows[2], [tpm_entry or ''] = windows[#windows] }
local state = { windows[1].rpm or -1, windows[1].requests, (windows[1].last_second + 61) * 1000 - now,
  windows[1].tpm or -1, windows[1].tokens,
  tonumber(model_rpm) or -1, rpm_entry and by_entry[rpm_entry].requests or 0,
  tonumber(model_tpm) or -1, tpm_entry and by_entry[tpm_entry].tokens or 0,
  parallel or -1, in_flight,
  user.limit or -1, user.spent + user.held, user.ends and user.ends - now or -1,
  entry_row.limit or -1, entry_row.spent + entry_row.held, entry_row.ends and entry_row.ends - now or -1 }
if not fits and call('HEXISTS', KEYS[5], id) == 0 then
  local reply = refuse(windows, budgets, parallel, in_flight, { tokens = asked_tokens, nanos = asked_nanos },
    { tokens = hold_tokens, nanos = hold_nanos, costs = costs }, now)
  reply[2] = state
  return reply
end
if record[1] == ARGV[13] then return { 'admitted', state, record[1], false } end
return { 'admitted', state, record[1],
  call('HMGET', KEYS[6], 'user_alias', 'user_role', 'teams', 'metadata', 'guardrails', 'permissions') }

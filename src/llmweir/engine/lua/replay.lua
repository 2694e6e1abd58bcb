-- Settles a request from the outbox, once, whenever it comes and however often: with its lease, or the memory of one that
-- expired, as `settle` would; without either it was let through while Redis was away, or its lease was lost with what a
-- crash of Redis lost, and is counted now where it belongs by its own time.
--
-- KEYS[1] the user's record     KEYS[2] its use        KEYS[3] its windows (KEYS[3]:account)     KEYS[4] its leases
-- ARGV[1] request id            ARGV[2] time in ms, '' = the server's
-- ARGV[3] when it was admitted, in ms                  ARGV[4] API key's hash, '' = the app named the caller
-- ARGV[5] model                 ARGV[6] input tokens   ARGV[7] output tokens     ARGV[8] cost in nanos
-- ARGV[9] 1 = the request failed upstream              ARGV[10] 1 = it never was: undo it all
-- ARGV[11] 1 = it may be settled already: without a lease it is not counted anew
-- ARGV[12] memo life in ms      ARGV[13] tombstone's life in ms
--
-- Reply: { settled 0 | 1, spend, soft budget }    in nanos, where this crossed the soft budget; else { settled }
--
--- @include clock_ms
--- @include catch_up
--- @include is_tombstone
--- @include bury
--- @include count_anew
local record, use, leases, id, now = KEYS[1], KEYS[2], KEYS[4], ARGV[1], clock_ms(ARGV[2])
local input, output, nanos, failed, cancelled = ARGV[6] + 0, ARGV[7] + 0, ARGV[8] + 0, ARGV[9] + 0, ARGV[10] == '1'

-- Read: is it done, is it held?
local memo_key = record .. SUFFIX.memo .. id
catch_up(record, now, ARGV[12])
local lease, memo = call('HGET', leases, id), call('GET', memo_key)
if memo == 'done' then return { 0 } end
local buried = lease and is_tombstone(lease)
if buried then lease = false end

-- Decide.
local is_held, is_new = lease or memo, not buried and not cancelled and ARGV[11] ~= '1'

-- Write, first what makes it happen once.
call('SET', memo_key, 'done', 'PX', ARGV[12])
if not is_held and (is_new or cancelled) then bury(record, id, now + ARGV[13]) end
local spend, soft_budget
if is_held then
  spend, soft_budget = charge(record, lease or memo, not lease, input, output, nanos, failed, cancelled)
  if lease then call('HDEL', leases, id) end
elseif is_new then
  spend, soft_budget = count_anew(record, use, KEYS[3], ARGV[4], ARGV[5], math.min(ARGV[3] + 0, now), now, input, output,
    nanos, failed)
end
if not is_held and not is_new then return { 0 } end
if spend then return { 1, spend, soft_budget } end
return { 1 }

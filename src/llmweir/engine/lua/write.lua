-- Creates or updates a user's record: all of the changes, or none.
--
-- KEYS[1] the user's record     KEYS[2] its doc     KEYS[3] its use
-- ARGV[1] time in ms, '' = the server's
-- ARGV[2] 'new' = only if there is none; 'old' = only if there is one
-- ARGV[3] memo life in ms
-- ARGV[4..] changes, three a piece: what, name, value
--   set / unset      a field of the record
--   family           '' : removes all fields of the record that begin with name ('r:')
--   doc / undoc      a field of the doc, as JSON text
--   use / unuse      a field of the use hash
--   period           value = the user's budget duration: a period starts now; '' = none
--   model_budget     name = entry, value = 'nanos' or 'nanos duration'; an unchanged duration keeps its period
--   spend            value = nanos spent in this period
--
-- Reply: { 1, version } written; { 0 } there is (new) or is no (old) record.
--
--- @include clock_ms
--- @include expire_leases
--- @include roll_periods
local record, doc, use = KEYS[1], KEYS[2], KEYS[3]
if call('EXISTS', record) == (ARGV[2] == 'new' and 1 or 0) then return { 0 } end
local now = clock_ms(ARGV[1])
expire_leases(record, now, ARGV[3])
roll_periods(record, now)

local had = {}
local change = {
  set = function(name, value) call('HSET', record, name, value) end,
  unset = function(name) call('HDEL', record, name) end,
  family = function(prefix)
    local flat = call('HGETALL', record)
    for index = 1, #flat, 2 do
      if string.sub(flat[index], 1, #prefix) == prefix then
        had[flat[index]] = flat[index + 1]
        call('HDEL', record, flat[index])
      end
    end
  end,
  doc = function(name, value) call('HSET', doc, name, value) end,
  undoc = function(name) call('HDEL', doc, name) end,
  use = function(name, value) call('HSET', use, name, value) end,
  unuse = function(name) call('HDEL', use, name) end,
  period = function(_, duration)
    call('HDEL', record, 'bd', 'ba')
    call('HDEL', use, 'e', 'sm')
    if duration == '' then return end
    call('HSET', record, 'bd', duration, 'ba', now)
    call('HSET', use, 'e', period_end(duration, now, now))
  end,
  spend = function(_, nanos)
    local spent, adjusted = unpack(call('HMGET', use, 's', 'j'))
    call('HSET', use, 's', nanos, 'j', (adjusted or 0) + nanos - (spent or 0))
    call('HDEL', use, 'sm')
  end,
  model_budget = function(entry, value)
    local nanos, duration = string.match(value, '^(%d+) ?(%w*)$')
    local had_duration, anchor = string.match(had['b:' .. entry] or '', '^%d+ (%w+) (%d+)$')
    if duration == '' then
      call('HSET', record, 'b:' .. entry, nanos)
      call('HDEL', use, 'be:' .. entry)
    else
      if duration ~= had_duration then
        anchor = now
        call('HSET', use, 'be:' .. entry, period_end(duration, now, now))
      end
      call('HSET', record, 'b:' .. entry, nanos .. ' ' .. duration .. ' ' .. anchor)
    end
    if had['b:' .. entry] then return end
    -- A new entry begins with what its models have spent in the user's period.
    local spent, flat, prefix = 0, call('HGETALL', use), string.match(entry, '^(.*)%*$')
    for index = 1, #flat, 2 do
      local model = string.match(flat[index], '^s:(.*)$')
      if model and (model == entry or prefix and string.sub(model, 1, #prefix) == prefix) then
        spent = spent + flat[index + 1]
      end
    end
    call('HSET', use, 'bs:' .. entry, spent)
  end,
}

-- Write.
for index = 4, #ARGV, 3 do change[ARGV[index]](ARGV[index + 1], ARGV[index + 2]) end
local version = call('HINCRBY', record, 'v', 1)
call('HSET', doc, 'updated_at_ms', now)
if ARGV[2] == 'new' then call('HSET', doc, 'created_at_ms', now) end
return { 1, version }

-- Creates or updates a user's record: all of the changes, or none.
--
-- KEYS[1] the user's record     KEYS[2] its doc     KEYS[3] its use
-- ARGV[1] time in ms, '' = the server's
-- ARGV[2] 'new' = only if there is none; 'old' = only if there is one; 'default' = only if that is a default user's
-- ARGV[3] memo life in ms
-- ARGV[4..] changes, three a piece: what, name, value
--   set / unset      a field of the record
--   family           '' : removes all fields of the record that begin with name ('r:')
--   doc / undoc      a field of the doc, as JSON text
--   join / leave     value = a string as JSON that is added to a list of them, a field of the doc, or taken out
--   needs            name = hash of an API key that must be there, else nothing is written
--   lacks            name = hash of an API key that must not be there, else nothing is written
--   key_is           name = hash, value = 'expiry blocked' that it must have, else nothing is written
--   doc_is           value = the text that a field of the doc must have, else nothing is written
--   use / unuse      a field of the use hash
--   period           value = the user's budget duration: a period starts now, unless it had this one; '' = none
--   model_budget     name = entry, value = 'nanos' or 'nanos duration'; an unchanged duration keeps its period; a new
--                    entry begins with what its models have spent in the user's period
--   spend            value = nanos spent in this period
--   key              name = hash of an API key, new or not; value = 'expiry blocked', or 'expiry blocked rpm tpm parallel
--                    budget flags' for one with limits of its own (flags: see `key_row`)
--   key_list         name = hash; value = 'm' or 'a', then a line each: the models it may use, or name and model in turn
--   key_period       name = hash, value = the duration of its budget periods; '' = none
--   key_spend        name = hash, value = nanos spent
--   move_key         name = hash, value = its new one         drop_key     name = hash
--
-- Reply: { 1, version } written; { 0 } there is (new) or is no (old) record, or not what it needs.
--
--- @include clock_ms
--- @include catch_up
--- @include set_period
--- @include set_spend
--- @include set_model_budget
--- @include join_list
--- @include leave_list
--- @include still_so
--- @include set_key
--- @include set_key_list
--- @include set_key_period
--- @include set_key_spend
--- @include drop_key
--- @include remember_key
--- @include pack_record
--- @include pack_entries
--- @include seed_budgets
local record, doc, use, now = KEYS[1], KEYS[2], KEYS[3], clock_ms(ARGV[1])

-- Read: is there one?
if call('EXISTS', record) == (ARGV[2] == 'new' and 1 or 0) then return { 0 } end
if ARGV[2] == 'default' and call('HEXISTS', record, 'df') == 0 then return { 0 } end
for index = 4, #ARGV, 3 do
  if not still_so(record, doc, ARGV[index], ARGV[index + 1], ARGV[index + 2]) then return { 0 } end
end

-- Write.
catch_up(record, now, ARGV[3])
local had, fresh = {}, {}
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
  join = function(name, item) join_list(doc, name, item) end,
  use = function(name, value) call('HSET', use, name, value) end,
  unuse = function(name) call('HDEL', use, name) end,
  period = function(_, duration) set_period(record, use, duration, now) end,
  model_budget = function(entry, value)
    local before = had['b:' .. entry] or call('HGET', record, 'b:' .. entry)
    set_model_budget(record, use, entry, value, before, now)
    if not before then fresh['m:' .. entry] = 0 end
  end,
  spend = function(_, nanos) set_spend(use, nanos, now) end,
  needs = function() end,
  lacks = function() end,
  key_is = function() end,
  doc_is = function() end,
  leave = function(name, item) leave_list(doc, name, item) end,
  key = function(hash, text) set_key(record, use, hash, text, now) end,
  key_list = function(hash, lines) set_key_list(record, hash, lines) end,
  key_period = function(hash, duration) set_key_period(record, use, hash, duration, now) end,
  key_spend = function(hash, nanos) set_key_spend(record, use, hash, nanos, now) end,
  drop_key = function(hash) drop_key(record, doc, use, hash) end,
  move_key = function(hash, to)
    remember_key(record, hash, now, now + ARGV[3])
    call('HSET', record, 'k:' .. to, call('HGET', record, 'k:' .. hash))
    call('HDEL', record, 'k:' .. hash)
  end,
}
local entries_changed = false
for index = 4, #ARGV, 3 do
  local what, name = ARGV[index], ARGV[index + 1]
  change[what](name, ARGV[index + 2])
  entries_changed = entries_changed or what == 'model_budget' or string.find(name, '^[rtb]:') ~= nil
end
if entries_changed then pack_entries(record) end
if next(fresh) then seed_budgets(record, use, fresh, now) end
local version = call('HINCRBY', record, 'v', 1)
pack_record(record, version)
call('HSET', doc, 'updated_at_ms', now)
if ARGV[2] == 'new' then call('HSET', doc, 'created_at_ms', now) end
return { 1, version }

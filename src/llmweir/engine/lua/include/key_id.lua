-- The id of an API key of a user: a number that stays the same when the key itself is made anew.
local function key_id(record, hash) return match(call('HGET', record, 'k:' .. hash), '^%d+ %d (%d+)') end

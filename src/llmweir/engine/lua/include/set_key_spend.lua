--- @include edit_account
--- @include key_id
-- Sets what an API key has spent, in its period if it has one.
local function set_key_spend(record, use, hash, nanos, now)
  local id = key_id(record, hash)
  if call('HEXISTS', use, 'k:' .. id) == 1 then return edit_account(use, 'k:' .. id, now, nanos) end
  call('HSET', use, 'ks:' .. id, nanos)
end

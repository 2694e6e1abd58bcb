--- @include budget_of
--- @include with_budget
-- Adds to what an API key has spent that had no account when its request came: it has got one since, or is deleted.
local function charge_key(use, key, more_spent)
  local account = call('HGET', use, 'k:' .. key)
  if not account then return end
  local _, spent = budget_of(account)
  call('HSET', use, 'k:' .. key, with_budget(account, nil, spent + more_spent))
end

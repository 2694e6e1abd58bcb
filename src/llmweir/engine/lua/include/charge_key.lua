--- @include budget_of
--- @include with_budget
-- Adds to what an API key has spent that had no account when its request came: it has got one since, or is deleted. What
-- is given back may have been spent before the period that runs now, so a key with periods is given nothing back.
local function charge_key(use, key, more_spent)
  local account = call('HGET', use, 'k:' .. key)
  if not account then return end
  local _, spent, _, ends = budget_of(account)
  if more_spent < 0 and ends >= 0 then return end
  call('HSET', use, 'k:' .. key, with_budget(account, nil, spent + more_spent))
end

--- @include budget_of
--- @include edit_account
-- Sets what a user has spent in this period; `j` is by how much that was done, so that the books balance.
local function set_spend(use, nanos, now)
  local account, adjusted = unpack(call('HMGET', use, 'u', 'j'))
  local _, spent = 0, 0
  if account then _, spent = budget_of(account) end
  call('HSET', use, 'j', format('%d', (adjusted or 0) + nanos - spent))
  call('HDEL', use, 'sm')
  edit_account(use, 'u', now, nanos)
end

--- @include new_account
--- @include with_budget
-- Changes the spend of an account's period, or its end, and leaves the rest; nil = as it is.
local function edit_account(use, name, now, spent, ends)
  local account = call('HGET', use, name) or new_account(floor(now / 1000))
  call('HSET', use, name, with_budget(account, nil, spent and spent + 0, nil, ends))
end

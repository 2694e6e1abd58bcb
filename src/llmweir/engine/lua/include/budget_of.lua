-- The budget part of an account: held and spent nanos, number of the period, its end.
local function budget_of(account)
  local _, _, _, _, _, _, held, spent, period, ends = unpack_from(LAYOUT.account, account)
  return held, spent, period, ends
end

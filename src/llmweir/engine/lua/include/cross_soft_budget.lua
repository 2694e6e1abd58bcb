-- Notes that a user's spend, in nanos, has reached the soft budget, once a period; returns both when it is the first time.
local function cross_soft_budget(use, spend)
  local soft_budget, crossed = unpack(call('HMGET', use, 'sb', 'sm'))
  if not soft_budget or crossed or spend < soft_budget + 0 then return end
  call('HSET', use, 'sm', 1)
  return spend, soft_budget
end

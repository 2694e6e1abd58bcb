--- @include period_end
--- @include budget_of
--- @include with_budget
--- @include close_day
-- Ends the budget periods that are over: spend starts again from 0 and the period gets a new number, so that what was
-- held in the old one is not taken from the new. A model's budget without a duration of its own follows the user's; an
-- API key's never does.
local function roll_periods(record, now)
  local use = record .. SUFFIX.use
  local function restart(field, account, duration, anchor)
    local _, _, period = budget_of(account)
    local ends = duration and period_end(duration, anchor + 0, now) or -1
    call('HSET', use, field, with_budget(account, 0, 0, period + 1, ends))
  end
  local function end_of(account) return select(4, budget_of(account)) end
  local function over(account) return end_of(account) >= 0 and end_of(account) <= now end
  local flat, user = call('HGETALL', use), call('HGET', use, 'u')
  local rolls = user and over(user)
  if rolls then
    restart('u', user, unpack(call('HMGET', record, 'bd', 'ba')))
    call('HDEL', use, 'sm', 'j')
  end
  for index = 1, #flat, 2 do
    local field, value = flat[index], flat[index + 1]
    local family, entry = match(field, '^([mks]):(.*)$')
    if family == 's' and rolls then
      close_day(record, entry, value)
      call('HDEL', use, field)
    elseif family == 'k' and over(value) then
      restart(field, value, match(call('HGET', record, 'kd:' .. entry) or '', '^(%w+) (%d+)$'))
    elseif family == 'm' and over(value) then
      restart(field, value, match(call('HGET', record, 'b:' .. entry) or '', '^%d+ (%w+) (%d+)$'))
    elseif family == 'm' and rolls and end_of(value) < 0 then
      restart(field, value)
    end
  end
end

--- @include period_end
--- @include with_budget
-- Ends the budget periods that are over: spend starts again from 0 and the period gets a new number, so that what was
-- held in the old one is not taken from the new. A model's budget without a duration of its own follows the user's.
local function roll_periods(record, now)
  local use = record .. SUFFIX.use
  local function restart(field, text, duration, anchor)
    local period = match(text, ' (%d+) %S+$')
    local ends = duration and period_end(duration, anchor + 0, now) or -1
    call('HSET', use, field, with_budget(text, 0, 0, period + 1, ends))
  end
  local function over(text) return match(text, '%S+$') + 0 >= 0 and match(text, '%S+$') + 0 <= now end
  local flat, user = call('HGETALL', use), call('HGET', use, 'u')
  local rolls = user and over(user)
  if rolls then
    restart('u', user, unpack(call('HMGET', record, 'bd', 'ba')))
    call('HDEL', use, 'sm', 'j')
  end
  for index = 1, #flat, 2 do
    local field, text = flat[index], flat[index + 1]
    local family, entry = match(field, '^([ms]):(.*)$')
    if family == 's' and rolls then
      call('HDEL', use, field)
    elseif family == 'm' and over(text) then
      restart(field, text, match(call('HGET', record, 'b:' .. entry) or '', '^%d+ (%w+) (%d+)$'))
    elseif family == 'm' and rolls and string.find(text, ' %-1$') then
      restart(field, text)
    end
  end
end

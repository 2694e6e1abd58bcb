--- @include close_day
-- Moves all rows of days that the use hash keeps to where they stay; what is spent in the period is left.
local function close_days(record)
  local use = record .. SUFFIX.use
  local flat = call('HGETALL', use)
  for index = 1, #flat, 2 do
    local model = match(flat[index], '^s:(.*)$')
    if model then call('HSET', use, flat[index], close_day(record, model, flat[index + 1])) end
  end
end

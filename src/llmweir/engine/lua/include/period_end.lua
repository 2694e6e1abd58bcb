--- @include civil
--- @include days
-- When the period that `now` lies in ends, in ms. `duration` is a length in ms, or '3mo' for calendar months:
-- those are always counted from the anchor, so that the 31st comes back after a short month.
local function period_end(duration, anchor, now)
  local length = tonumber(duration)
  if length then return anchor + (floor(math.max(0, now - anchor) / length) + 1) * length end
  local step = tonumber(match(duration, '^(%d+)mo$'))
  local time_of_day = anchor % 86400000
  local year, month, day = civil(floor(anchor / 86400000))
  local now_year, now_month = civil(floor(math.max(anchor, now) / 86400000))
  local periods = math.max(1, floor(((now_year - year) * 12 + now_month - month) / step))
  while true do
    local months = year * 12 + month - 1 + periods * step
    local to_year, to_month = floor(months / 12), months % 12 + 1
    local last_day = days(to_month == 12 and to_year + 1 or to_year, to_month % 12 + 1, 1) - days(to_year, to_month, 1)
    local ends = days(to_year, to_month, math.min(day, last_day)) * 86400000 + time_of_day
    if ends > now then return ends end
    periods = periods + 1
  end
end

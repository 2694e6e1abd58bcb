-- The number of days since 1970-01-01 of a UTC date: the inverse of `civil`.
local function days(year, month, day)
  local march_year = month <= 2 and year - 1 or year
  local era = floor(march_year / 400)
  local year_of_era = march_year - era * 400
  local march_month = month > 2 and month - 3 or month + 9
  local day_of_year = floor((153 * march_month + 2) / 5) + day - 1
  local day_of_era = year_of_era * 365 + floor(year_of_era / 4) - floor(year_of_era / 100) + day_of_year
  return era * 146097 + day_of_era - 719468
end

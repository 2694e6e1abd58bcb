-- Reads what a user has used on some days, and first moves what is kept beside the account there; the user may be
-- deleted.
--
-- KEYS[1] the user's record
-- ARGV[1] first day, ARGV[2] last day: their numbers since 1970-01-01 (UTC)
--
-- Reply: a list a day that has something, { day, models and their rows in turn }, a row as `day_add` writes it.
--
--- @include close_days
close_days(KEYS[1])
local found = {}
for day = ARGV[1] + 0, ARGV[2] + 0 do
  local rows = call('HGETALL', KEYS[1] .. SUFFIX.day .. day)
  if #rows > 0 then found[#found + 1] = { day, rows } end
end
return found

-- The text of an account nothing was counted in. Its period has a number that no account of the same name had lately,
-- so that a late settlement for a user who was deleted and made again changes nothing.
local function new_account(second)
  return format('%d 0 0 0 0 0 0 %d -1', second, second % 1000000)
end

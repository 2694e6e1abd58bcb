-- An account nothing was counted in. Its period has a number that no account of the same name had lately, so that a
-- late settlement for a user who was deleted and made again changes nothing.
local function new_account(second) return pack(LAYOUT.account, second, 0, 0, 0, 0, 0, 0, 0, second % 1000000, -1) end

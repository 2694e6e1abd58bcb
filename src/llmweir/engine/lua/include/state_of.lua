-- Where the limits stand, as the header of `admit` lists them. An API key's own limit takes the place of the user's
-- where it has less room left.
local function state_of(rows, second, now)
  local user = rows[1]
  local last = user.moved and user.moved.left and user.moved.last or second
  local state = { user.rpm, user.requests, (last + 61) * 1000 - now, user.tpm, user.tokens, -1, 0, -1, 0,
    user.parallel, user.running, user.budget, user.spent + user.held, user.ends < 0 and -1 or user.ends - now, -1, 0, -1 }
  for index = 2, #rows do
    local row = rows[index]
    if byte(row.name) == 107 then
      --- @include tighter_of_key
      tighter_of_key(state, row, now)
    else
      if row.rpm >= 0 then state[6], state[7] = row.rpm, row.requests end
      if row.tpm >= 0 then state[8], state[9] = row.tpm, row.tokens end
      if row.budget >= 0 then
        local ends = row.ends < 0 and user.ends or row.ends
        state[15], state[16], state[17] = row.budget, row.spent + row.held, ends < 0 and -1 or ends - now
      end
    end
  end
  return state
end

-- Puts the limits of an API key's row into a state (see `state_of`) where they have less room left than the user's own.
local function tighter_of_key(state, row, now)
  local function put(at, limit, used)
    if limit < 0 or state[at] >= 0 and state[at] - state[at + 1] <= limit - used then return false end
    state[at], state[at + 1] = limit, used
    return true
  end
  put(1, row.rpm, row.requests)
  put(4, row.tpm, row.tokens)
  put(10, row.parallel, row.running)
  if put(12, row.budget, row.spent + row.held) then state[14] = row.ends < 0 and -1 or row.ends - now end
end

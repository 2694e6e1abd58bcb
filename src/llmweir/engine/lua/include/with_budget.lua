-- An account with another budget part: held and spent nanos, number of the period, its end. nil = as it is.
local function with_budget(account, held, spent, period, ends)
  local second, requests, slot_requests, tokens, slot_tokens, running, had_held, had_spent, had_period, had_ends =
    unpack_from(LAYOUT.account, account)
  return pack(LAYOUT.account, second, requests, slot_requests, tokens, slot_tokens, running, held or had_held,
    spent or had_spent, period or had_period, ends or had_ends)
end

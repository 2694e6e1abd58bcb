-- The text of an account with another budget part: held and spent nanos, number of the period, its end. nil = as it is.
local function with_budget(text, held, spent, period, ends)
  local window, had_held, had_spent, had_period, had_ends =
    match(text, '^(%S+ %S+ %S+ %S+ %S+) (%S+) (%S+) (%S+) (%S+)$')
  return format('%s %d %d %d %d', window, held or had_held, spent or had_spent, period or had_period,
    ends or had_ends)
end

-- Says which limit is in the way of a request: of several, the one that takes longest to clear.
-- The windows and budgets are admit's rows; `asked` is what must fit under a limit itself, `hold` what is held.
local function refuse(windows, budgets, parallel, in_flight, asked, hold, now)
  --- @include window_wait
  local severity, worst, reply = { wait = 1, stop = 2, never = 3 }, 0, nil
  local function in_the_way(name, entry, kind, limit, used, wants, wait_ms)
    local weight = severity[kind] * 1e15 + wait_ms
    if weight <= worst then return end
    worst, reply = weight, { 'limit', false, name, entry, kind, limit, used, wants, wait_ms }
  end
  local function check_window(window, kind, name, limit, used, least, wants)
    if not limit or wants == 0 then return end
    if least > limit then
      in_the_way(window.scope .. name, window.entry, 'never', limit, used, least, -1)
    elseif used + wants > limit then
      in_the_way(window.scope .. name, window.entry, 'wait', limit, used, wants, window_wait(window, kind, limit, wants, now))
    end
  end
  for _, window in ipairs(windows) do
    check_window(window, 'r', 'rpm', window.rpm, window.requests, 1, 1)
    check_window(window, 't', 'tpm', window.tpm, window.tokens, asked.tokens, hold.tokens)
  end
  if parallel and in_flight >= parallel then
    in_the_way('parallel', false, parallel == 0 and 'never' or 'wait', parallel, in_flight, 1, parallel == 0 and -1 or 1000)
  end
  for _, budget in ipairs(budgets) do
    local name, limit, spent = budget.scope .. 'budget', budget.limit, budget.spent
    if not limit then
      spent = 0
    elseif limit > 0 and asked.nanos > limit then
      in_the_way(name, budget.entry, 'never', limit, spent + budget.held, asked.nanos, -1)
    elseif spent + hold.nanos > limit or spent >= limit and hold.costs then
      in_the_way(name, budget.entry, 'stop', limit, spent, hold.nanos, budget.ends and budget.ends - now or -1)
    elseif spent + budget.held + hold.nanos > limit then
      in_the_way(name, budget.entry, 'wait', limit, spent + budget.held, hold.nanos, 2000)
    end
  end
  return reply
end

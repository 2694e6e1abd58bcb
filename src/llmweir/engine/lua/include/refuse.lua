--- @include window_wait
-- Says which limit is in the way of a request: of several, the one that takes longest to clear. The reply is admit's.
-- `least_*` must fit under a limit itself; `tokens` and `nanos` are what would be held.
local function refuse(rows, second, windows, least_tokens, tokens, least_nanos, nanos, costs, now, state, expired)
  local severity, worst, reply = { wait = 1, stop = 2, never = 3 }, 0, nil
  local function in_the_way(row, name, kind, limit, used, asked, wait_ms)
    local weight = severity[kind] * 1e15 + (wait_ms < 0 and 1e14 or wait_ms)
    if weight <= worst then return end
    worst, reply = weight, { 'limit', state, name, row.name, kind, limit, used, asked, wait_ms, expired }
  end
  local function check_window(row, name, kind, limit, used, least, asked)
    if limit < 0 or asked == 0 then return end
    if least > limit then
      in_the_way(row, name, 'never', limit, used, least, -1)
    elseif used + asked > limit then
      in_the_way(row, name, 'wait', limit, used, asked,
        window_wait(row, windows .. ':' .. row.name, kind, used + asked - limit, second, now))
    end
  end
  local function check_budget(row, limit, spent, ends)
    if limit > 0 and least_nanos > limit then
      in_the_way(row, 'budget', 'never', limit, spent + row.held, least_nanos, -1)
    elseif spent + nanos > limit or spent >= limit and costs then
      in_the_way(row, 'budget', 'stop', limit, spent, nanos, ends < 0 and -1 or ends - now)
    elseif spent + row.held + nanos > limit then
      in_the_way(row, 'budget', 'wait', limit, spent + row.held, nanos, 2000)
    end
  end
  for _, row in ipairs(rows) do
    check_window(row, 'rpm', 0, row.rpm, row.requests, 1, 1)
    check_window(row, 'tpm', 61, row.tpm, row.tokens, least_tokens, tokens)
    if row.parallel == 0 then in_the_way(row, 'parallel', 'never', 0, row.running, 1, -1) end
    if row.parallel > 0 and row.running >= row.parallel then
      in_the_way(row, 'parallel', 'wait', row.parallel, row.running, 1, 1000)
    end
    local follows = row.ends < 0 and byte(row.name) == 109
    if row.budget >= 0 then check_budget(row, row.budget, row.spent, follows and rows[1].ends or row.ends) end
  end
  return reply
end

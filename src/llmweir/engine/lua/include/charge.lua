--- @include charge_account
--- @include day_add
-- Settles one request: `lease`, the text admit wrote, becomes what was really used. Tokens go into the slot they were
-- held in, money into the budget period it was held in, while those still run; the day's row gets all of it.
-- `input` and `output` are tokens (nil: all as held, for a lease that expired), `failed` is 0 or 1, `cancelled`: the
-- request never was. `already`: it was charged as held before, then only the difference moves.
-- Returns spend and soft budget, in nanos, when a settlement crossed the soft budget, the first in the period.
local function charge(record, lease, already, input, output, nanos, failed, cancelled)
  local second, tokens, held, period, model, rows = match(lease, '^%d+ (%d+) (%d+) (%d+) (%S+) ([^\n]*)(.*)$')
  local settled = input
  if not settled then input, output, nanos, failed = tokens + 0, 0, held + 0, 0 end
  local more_requests, more_tokens = cancelled and -1 or 0, input + output - tokens
  local more_spent = nanos - (already and held or 0)
  local use, fields = record .. SUFFIX.use, { 's:' .. model, 'sb', 'sm', 'u', nil }
  local counts, periods, count = { '1', nil }, { period, nil }, 1
  while rows ~= '' do
    count = count + 1
    counts[count], periods[count], fields[count + 3], rows = match(rows, '^\n(%d) (%S+) ([^\n]*)(.*)$')
  end
  local read, crossed = call('HMGET', use, unpack(fields)), false
  if read[4] then -- else the user was deleted
    local write, text, spend = { 'HSET', use, nil, nil, nil, nil, nil, nil }, nil, nil
    local windows, released, at_second = record .. SUFFIX.window, already and 0 or held, second + 0
    for index = count, 1, -1 do -- the user's own last
      local name = fields[index + 3]
      text, spend = charge_account(read[index + 3], windows, name, periods[index], counts[index] == '1' and at_second,
        more_requests, more_tokens, released, more_spent)
      write[1 + 2 * index], write[2 + 2 * index] = name, text
    end
    if spend and (more_spent ~= 0 or read[1]) then
      write[#write + 1], write[#write + 2] = fields[1], (read[1] or 0) + more_spent
    end
    crossed = settled and spend and read[2] and not read[3] and spend >= read[2] + 0 and spend
    if crossed then write[#write + 1], write[#write + 2] = 'sm', 1 end
    call(unpack(write))
  end
  if already or not cancelled then
    local requests, new_input = already and more_requests or 1, input - (already and tokens or 0)
    day_add(record, second, model, requests, failed, new_input, output, more_spent)
  end
  if crossed then return crossed, read[2] end
end

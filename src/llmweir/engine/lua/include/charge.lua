--- @include charge_account
--- @include charge_model
-- Settles one request: `lease`, as admit wrote it, becomes what was really used. Tokens go into the slot they were
-- held in, money into the budget period it was held in, while those still run; the day's row gets all of it.
-- `input` and `output` are tokens (nil: all as held, for a lease that expired), `failed` is 0 or 1, `cancelled`: the
-- request never was. `already`: it was charged as held before, then only the difference moves.
-- Returns spend and soft budget, in nanos, when a settlement crossed the soft budget, the first in the period.
local function charge(record, lease, already, input, output, nanos, failed, cancelled)
  local _, second, tokens, held, period, key, model, at = unpack_from(LAYOUT.lease, lease)
  local settled = input
  if not settled then input, output, nanos, failed = tokens, 0, held, 0 end
  local more_requests, more_tokens = cancelled and -1 or 0, input + output - tokens
  local more_spent, leaves, released = nanos - (already and held or 0), already and 0 or 1, already and 0 or held
  local use, fields = record .. SUFFIX.use, { 's:' .. model, 'sb', 'sm', 'ks:' .. key, 'u', nil, nil }
  local counts, periods, count = { 1, nil }, { period, nil }, 1
  while at <= #lease do
    count = count + 1
    counts[count], periods[count], fields[count + 4], at = unpack_from(LAYOUT.lease_row, lease, at)
  end
  local read, write, size, spend = call('HMGET', use, unpack(fields)), { 'HSET', use, nil, nil, nil, nil, nil, nil }, 2, nil
  local windows = record .. SUFFIX.window
  local known = read[5] and period >= 0 -- else the user was deleted
  if known and already then
    --- @include made_since
    known = not made_since(record, second)
  end
  for index = known and count or 0, 1, -1 do -- the user's own last
    if read[index + 4] then -- else the key was deleted
      write[size + 1] = fields[index + 4]
      write[size + 2], spend = charge_account(read[index + 4], windows, fields[index + 4], periods[index],
        counts[index] == 1 and second, more_requests, more_tokens, leaves, released, more_spent)
      size = size + 2
    end
  end
  if already or not cancelled then
    local requests, new_input = already and more_requests or 1, input - (already and tokens or 0)
    if known then
      write[size + 1], write[size + 2] = charge_model(record, use, model, read[1], second, spend and more_spent or 0,
        requests, failed, new_input, output, more_spent)
      size = size + 2
    else
      day_add(record, floor(second / 86400), model, requests, failed, new_input, output, more_spent)
    end
    if known and key ~= '-' and more_spent ~= 0 then
      if read[4] then
        write[size + 1], write[size + 2], size = fields[4], format('%d', read[4] + more_spent), size + 2
      else
        --- @include charge_key
        charge_key(use, key, more_spent)
      end
    end
  end
  local crossed = settled and spend and read[2] and not read[3] and spend >= read[2] + 0
  if crossed then write[size + 1], write[size + 2], size = 'sm', 1, size + 2 end
  if size > 2 then call(unpack(write)) end
  if crossed then return spend, read[2] end
end

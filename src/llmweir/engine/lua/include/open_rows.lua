-- Reads the accounts of all scopes, fields of the use hash, into rows as they stand now, without writing (`turn_back`
-- aside): the user's own ('u') first, with the limits given, then a row a line of `of_model` ('m:gpt-4*'; nil: none),
-- 'rpm tpm budget account'. A limit of -1 is none. An account is
-- 'second requests slot_requests tokens slot_tokens held spent period ends':
--
-- A window is 61 one-second slots, the running one and the 60 before it: `requests` and `tokens` are those of the
-- whole span, `slot_requests` and `slot_tokens` those of `second`, the last one in which something was counted. The
-- slots before it lie in a ring of their own, a hash: slot s % 61 has its requests in that field, its tokens 61 later.
-- `held` nanos are with the requests in flight; `spent` nanos in the period of that number, which `ends` at that ms
-- (-1: never, or with the user's).
--
-- Returns the rows; `x`, a time before which no lease ends (false: there are none); whether something is due, a lease
-- that ended or a period; and the second to count in: the last one while a clock that ran back a little catches up.
local function open_rows(rpm, tpm, parallel, budget, of_model, use, windows, now)
  local rows, fields, count, second = { nil, nil }, { 'x', nil, nil }, 0, floor(now / 1000)
  local name, others = 'u', of_model or ''
  while true do
    count = count + 1
    rows[count] = { name = name, rpm = rpm + 0, tpm = tpm + 0, parallel = parallel + 0, budget = budget + 0, running = 0,
      requests = 0, slot_requests = 0, tokens = 0, slot_tokens = 0, held = 0, money = '', spent = 0, period = '',
      ends = 0, moved = false } -- 16 fields: one more would double the table
    fields[count + 1] = name
    if others == '' then break end
    rpm, tpm, budget, name, others = match(others, '^(%S+) (%S+) (%S+) ([^\n]*)\n?(.*)$')
    parallel = -1
  end
  local read = call('HMGET', use, unpack(fields))
  local due = read[1] and read[1] + 0 <= now
  for index = 1, count do
    local row, text = rows[index], read[index + 1]
    if not text then
      --- @include new_account
      text = new_account(second)
    end
    local last, requests, slot_requests, tokens, slot_tokens, held, money, spent, period, ends =
      match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) ((%S+) (%S+) (%S+))$')
    last, ends = last + 0, ends + 0
    row.requests, row.slot_requests = requests + 0, slot_requests + 0
    row.tokens, row.slot_tokens = tokens + 0, slot_tokens + 0
    row.held, row.money, row.spent, row.period, row.ends = held + 0, money, spent + 0, period, ends
    if index == 1 and last > second and last - second <= 60 then second = last end
    if last > second then
      --- @include turn_back
      turn_back(row, use, windows .. ':' .. row.name, second)
    elseif last < second then
      --- @include slide
      slide(row, windows .. ':' .. row.name, last, second)
    end
    if ends >= 0 and ends <= now then due = true end
  end
  return rows, read[1], due, second
end

-- Reads the accounts of all scopes, fields of the use hash, into rows as they stand now, without writing (`turn_back`
-- aside): the user's own ('u') first, with the limits given, then a row a line of `others` ('' = none; LAYOUT.line):
-- those of the API key ('k:3') and of the model ('m:gpt-4*'). A limit of -1 is none. What an account holds
-- (LAYOUT.account), in order:
--
-- A window is 61 one-second slots, the running one and the 60 before it. `second`, the last one in which something was
-- counted; `requests`, those of the whole span, and `slot_requests`, those of `second`; `tokens` and `slot_tokens`
-- likewise. The slots before it lie in a ring of their own, a hash: slot s % 61 has its requests in that field, its
-- tokens 61 later. `running` requests are in flight, and `held` nanos with them; `spent` nanos in the `period` of that
-- number, which `ends` at that ms (-1: never; a model's: with the user's).
--
-- Returns the rows; `x`, a time before which no lease ends (false: there are none); whether something is due, a lease
-- that ended or a period; and the second to count in: the last one while a clock that ran back a little catches up.
local function open_rows(rpm, tpm, parallel, budget, others, use, windows, now)
  local rows, fields, count, second = { nil, nil }, { 'x', nil, nil }, 0, floor(now / 1000)
  local name, at, size = 'u', 1, #others
  while true do
    count = count + 1
    rows[count] = { name = name, rpm = rpm, tpm = tpm, parallel = parallel, budget = budget, running = 0, requests = 0,
      slot_requests = 0, tokens = 0, slot_tokens = 0, held = 0, spent = 0, period = 0, ends = 0, moved = false }
    fields[count + 1] = name
    if at > size then break end
    rpm, tpm, parallel, budget, name, at = unpack_from(LAYOUT.line, others, at)
  end
  local read = call('HMGET', use, unpack(fields))
  local due = read[1] and read[1] + 0 <= now
  for index = 1, count do
    local row, account = rows[index], read[index + 1]
    if not account then
      --- @include new_account
      account = new_account(second)
    end
    local last, ends
    last, row.requests, row.slot_requests, row.tokens, row.slot_tokens, row.running, row.held, row.spent, row.period, ends =
      unpack_from(LAYOUT.account, account)
    row.ends = ends
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

-- Settles one request in one account (see `open_rows`): the account, and the spend if its period still runs.
-- Requests and tokens move in the slot they were counted in (`at_second`, false: in none), if that is still inside the
-- span; no more is taken than it has: a clock that was set back may have taken it to another. Nothing is dropped here: sum and slot move together, so the window stays true of its last second.
local function charge_account(account, windows, name, at_period, at_second, more_requests, more_tokens, leaves, released,
  more_spent)
  local second, requests, slot_requests, tokens, slot_tokens, running, held, spent, period, ends =
    unpack_from(LAYOUT.account, account)
  local ago = at_second and second - at_second or -1
  if ago == 0 then
    more_requests, more_tokens = math.max(more_requests, -slot_requests), math.max(more_tokens, -slot_tokens)
    requests, slot_requests = requests + more_requests, slot_requests + more_requests
    tokens, slot_tokens = tokens + more_tokens, slot_tokens + more_tokens
  elseif ago > 0 and ago <= 60 then
    if more_tokens ~= 0 then
      --- @include correct_slot
      tokens = tokens + correct_slot(windows .. ':' .. name, at_second % 61 + 61, more_tokens)
    end
    if more_requests ~= 0 then
      --- @include correct_slot
      requests = requests + correct_slot(windows .. ':' .. name, at_second % 61, more_requests)
    end
  end
  local in_period = period == at_period
  if in_period then spent, held = spent + more_spent, held - released end
  return pack(LAYOUT.account, second, requests, slot_requests, tokens, slot_tokens, running - leaves, held, spent, period,
    ends), in_period and spent
end

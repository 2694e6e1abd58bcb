-- Settles one request in one account (see `open_rows`): the account, and the spend if its period still runs.
-- Requests and tokens move in the slot they were counted in (`at_second`, false: in none), if that is still inside the
-- span. Nothing is dropped here: sum and slot move together, so the window stays true of its last second.
local function charge_account(account, windows, name, at_period, at_second, more_requests, more_tokens, leaves, released,
  more_spent)
  local second, requests, slot_requests, tokens, slot_tokens, running, held, spent, period, ends =
    unpack_from(LAYOUT.account, account)
  local ago = at_second and second - at_second or -1
  if ago == 0 then
    requests, slot_requests = requests + more_requests, slot_requests + more_requests
    tokens, slot_tokens = tokens + more_tokens, slot_tokens + more_tokens
  elseif ago > 0 and ago <= 60 then
    requests, tokens = requests + more_requests, tokens + more_tokens
    if more_tokens ~= 0 then call('HINCRBY', windows .. ':' .. name, at_second % 61 + 61, more_tokens) end
    if more_requests ~= 0 then call('HINCRBY', windows .. ':' .. name, at_second % 61, more_requests) end
  end
  local in_period = period == at_period
  if in_period then spent, held = spent + more_spent, held - released end
  return pack(LAYOUT.account, second, requests, slot_requests, tokens, slot_tokens, running - leaves, held, spent, period,
    ends), in_period and spent
end

-- Settles one request in one account (see `open_rows`): the new text, and the spend if its period still runs.
-- Requests and tokens move in the slot they were counted in (`at_second`, false: in none), if that is still inside the
-- span. Nothing is dropped here: sum and slot move together, so the window stays true of its last second.
local function charge_account(text, windows, name, at_period, at_second, more_requests, more_tokens, released, more_spent)
  local second, counts, tokens, slot_tokens, held, spent, period_and_end, period =
    match(text, '^(%S+) (%S+ %S+) (%S+) (%S+) (%S+) (%S+) ((%S+) %S+)$')
  local ago = at_second and second - at_second or -1
  if ago >= 0 and ago <= 60 then
    tokens = tokens + more_tokens
    if ago == 0 then
      slot_tokens = slot_tokens + more_tokens
    elseif more_tokens ~= 0 then
      call('HINCRBY', windows .. ':' .. name, at_second % 61 + 61, more_tokens)
    end
    if more_requests ~= 0 then
      local requests, slot_requests = match(counts, '(%S+) (%S+)')
      counts = format('%d %d', requests + more_requests, slot_requests + (ago == 0 and more_requests or 0))
      if ago > 0 then call('HINCRBY', windows .. ':' .. name, at_second % 61, more_requests) end
    end
  end
  local in_period = period == at_period
  if in_period then spent, held = spent + more_spent, held - released end
  return format('%s %s %d %d %d %d %s', second, counts, tokens, slot_tokens, held, spent, period_and_end),
    in_period and spent
end

--- @include day_add
-- What a user has used of a model, a field of the use hash (LAYOUT.model): `spent` nanos in the user's period; the rest is
-- the row of the last `day` (`day_add`), kept here while it runs: requests, failed, input and output tokens, nanos.
-- `had` is the field as it is (false: there is none). Returns the field's name and what it becomes. Models' names are
-- the caller's: past some thousands of fields, the rest share the field of no name.
local function charge_model(record, use, model, had, second, spent, requests, failed, input, output, nanos)
  local today = floor(second / 86400)
  if not had and call('HLEN', use) >= 4000 then
    model = ''
    had = call('HGET', use, 's:')
  end
  if had then
    local had_spent, day, had_requests, had_failed, had_input, had_output, had_nanos = unpack_from(LAYOUT.model, had)
    spent = spent + had_spent
    if day == today then
      requests, failed, input = requests + had_requests, failed + had_failed, input + had_input
      output, nanos = output + had_output, nanos + had_nanos
    elseif day < today then -- it is over
      day_add(record, day, model, had_requests, had_failed, had_input, had_output, had_nanos)
    else
      day_add(record, today, model, requests, failed, input, output, nanos)
      today, requests, failed, input, output, nanos = day, had_requests, had_failed, had_input, had_output, had_nanos
    end
  end
  return 's:' .. model, pack(LAYOUT.model, spent, today, requests, failed, input, output, nanos)
end

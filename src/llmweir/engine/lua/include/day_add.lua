-- Adds to the user's row of a UTC day, by its number since 1970-01-01, that a request was admitted on: a hash with a
-- field a model, 'requests failed input output nanos'. Past a thousand models in a day, the rest share the row of no name.
local function day_add(record, day, model, requests, failed, input_tokens, output_tokens, nanos)
  local key = record .. SUFFIX.day .. day
  local row = call('HGET', key, model)
  if not row and call('HLEN', key) >= 1000 then
    model = ''
    row = call('HGET', key, model)
  end
  if row then
    local had_requests, had_failed, had_input, had_output, had_nanos =
      match(row, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    requests, failed, input_tokens = requests + had_requests, failed + had_failed, input_tokens + had_input
    output_tokens, nanos = output_tokens + had_output, nanos + had_nanos
  end
  call('HSET', key, model, format('%d %d %d %d %d', requests, failed, input_tokens, output_tokens, nanos))
  if not row then call('PEXPIRE', key, 400 * 86400000) end
end

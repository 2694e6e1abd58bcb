--- @include civil
-- Adds to the user's row of the UTC day a request was admitted on: a field a model, 'requests failed input output nanos'.
local function day_add(record, second, model, requests, failed, input_tokens, output_tokens, nanos)
  local key = record .. SUFFIX.day .. string.format('%04d%02d%02d', civil(floor(second / 86400)))
  local row = call('HGET', key, model)
  if row then
    local had_requests, had_failed, had_input, had_output, had_nanos =
      string.match(row, '^(%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+)$')
    requests, failed, input_tokens = requests + had_requests, failed + had_failed, input_tokens + had_input
    output_tokens, nanos = output_tokens + had_output, nanos + had_nanos
  end
  call('HSET', key, model, string.format('%.0f %.0f %.0f %.0f %.0f', requests, failed, input_tokens, output_tokens, nanos))
  if not row then call('PEXPIRE', key, 400 * 86400000) end
end

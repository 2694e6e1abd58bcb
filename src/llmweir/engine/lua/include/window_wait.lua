-- How long, in ms, until an opened window has room for `asked` more under `limit`, if nothing else comes:
-- the first second in which enough of the oldest slots have left. `kind` is 'r' for requests, 't' for tokens.
local function window_wait(window, kind, limit, asked, now)
  local excess = (kind == 'r' and window.requests or window.tokens) + asked - limit
  local first, fields = window.second - 60, {}
  for second = first, window.second do fields[#fields + 1] = kind .. second % 61 end
  local slots = call('HMGET', window.key, unpack(fields))
  -- The ring still holds what has left the span: the slots after the last one written, and the running one's old turn.
  for second = window.last_second + 1, window.second do slots[second - first + 1] = 0 end
  if window.restart then slots = { [61] = window.slot_tokens } end
  for index = 1, 61 do
    excess = excess - (slots[index] or 0)
    if excess <= 0 then return (first + index - 1 + 61) * 1000 - now end
  end
  return (window.second + 61) * 1000 - now
end

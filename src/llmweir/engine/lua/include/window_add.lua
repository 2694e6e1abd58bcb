-- Counts one request and its tokens into the running slot of an opened window, and writes the window.
local function window_add(window, tokens)
  local slot = window.second % 61
  if window.restart then call('DEL', window.key) end
  if window.left then call('HDEL', window.key, unpack(window.left)) end
  window.requests, window.tokens, window.last_second = window.requests + 1, window.tokens + tokens, window.second
  call('HSET', window.key, 's', window.second, 'r', window.requests, 't', window.tokens,
    'r' .. slot, window.slot_requests + 1, 't' .. slot, window.slot_tokens + tokens)
  if window.moved then call('PEXPIRE', window.key, 125000) end
end

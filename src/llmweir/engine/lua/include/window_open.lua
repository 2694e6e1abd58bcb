-- Opens a rolling window as it stands in `second`, without writing: the slots that have left it are subtracted.
--
-- 61 one-second slots, the running one and the 60 before it, in a ring: slot = second % 61. Fields: `s` the last
-- second written, `r` and `t` the requests and tokens in the span, `r0`..`r60` and `t0`..`t60` those of each slot.
-- The row: whose it is ('' the user's or 'model_', and the entry), its limits, and requests, tokens (of the span), slot_requests, slot_tokens (of the running slot), second (the
-- running one), last_second (when something was counted last), left (fields to remove), restart (write it anew).
local function window_open(key, second, scope, entry, rpm, tpm)
  local slot = second % 61
  local read = call('HMGET', key, 's', 'r', 't', 'r' .. slot, 't' .. slot)
  local last = tonumber(read[1])
  if last == second then
    return { key = key, scope = scope, entry = entry, rpm = rpm, tpm = tpm, second = second, last_second = second, requests = tonumber(read[2]), tokens = tonumber(read[3]),
      slot_requests = tonumber(read[4] or 0), slot_tokens = tonumber(read[5] or 0) }
  end
  if not last or second - last >= 61 then
    return { key = key, scope = scope, entry = entry, rpm = rpm, tpm = tpm, second = second, last_second = second, requests = 0, tokens = 0, slot_requests = 0,
      slot_tokens = 0, moved = true, restart = last }
  end
  local requests, tokens = tonumber(read[2]), tonumber(read[3])
  if last - second > 60 then
    -- The clock was set back by more than the span: all that is counted is taken to have happened now.
    return { key = key, scope = scope, entry = entry, rpm = rpm, tpm = tpm, second = second, last_second = second, requests = requests, tokens = tokens,
      slot_requests = requests, slot_tokens = tokens, moved = true, restart = last }
  end
  if last > second then
    -- The clock ran back a little: the window waits for it.
    local running = call('HMGET', key, 'r' .. last % 61, 't' .. last % 61)
    return { key = key, scope = scope, entry = entry, rpm = rpm, tpm = tpm, second = last, last_second = last, requests = requests, tokens = tokens,
      slot_requests = tonumber(running[1] or 0), slot_tokens = tonumber(running[2] or 0) }
  end
  requests, tokens = requests - (read[4] or 0), tokens - (read[5] or 0)
  local left
  if second - last > 1 then
    left = {}
    for passed = last + 1, second - 1 do
      left[#left + 1] = 'r' .. passed % 61
      left[#left + 1] = 't' .. passed % 61
    end
    local gone = call('HMGET', key, unpack(left))
    for index = 1, #left, 2 do
      requests, tokens = requests - (gone[index] or 0), tokens - (gone[index + 1] or 0)
    end
  end
  return { key = key, scope = scope, entry = entry, rpm = rpm, tpm = tpm, second = second, last_second = last, requests = requests, tokens = tokens, slot_requests = 0,
    slot_tokens = 0, moved = true, left = left }
end

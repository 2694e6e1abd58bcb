-- Reads all that an audit of one user's books takes, as it lies there: nothing is written, and nothing that is due takes
-- effect.
--
-- KEYS[1] the user's record     KEYS[2] its doc     KEYS[3] its use     KEYS[4] its leases
-- KEYS[5] its windows (KEYS[5]:account)
-- ARGV[1] time in ms, '' = the server's     ARGV[2] how many days back the rows of days are read at most
--
-- Reply: { now, is there a record 0 | 1, period, keys, doc, use, leases, windows, days }, or { now, 0 } and the names of
-- the keys that are there without it. period: duration, anchor, what admissions read, false = none; keys, doc, use, leases: flat lists of
-- fields and values, of the doc `created_at_ms`, `user_email` and `key:HASH` alone; windows: a list each, { account,
-- ring }; days: a list a day that has something, { day, its nanos in all, models and rows in turn, of those alone that do
-- not parse or where a number is below 0, here or in what the use hash keeps of the model }
--
--- @include clock_ms
--- @include key_fields
local record, now = KEYS[1], clock_ms(ARGV[1])
if call('EXISTS', record) == 0 then
  local left = {}
  for _, key in ipairs({ KEYS[2], KEYS[3], KEYS[4] }) do
    if call('EXISTS', key) == 1 then left[#left + 1] = key end
  end
  return { now, 0, left }
end

local doc, all = {}, call('HGETALL', KEYS[2])
for index = 1, #all, 2 do
  local name = all[index]
  if name == 'created_at_ms' or name == 'user_email' or match(name, '^key:') then
    doc[#doc + 1], doc[#doc + 2] = name, all[index + 1]
  end
end

local use, windows, kept_below = call('HGETALL', KEYS[3]), {}, {}
for index = 1, #use, 2 do
  local model = match(use[index], '^s:(.*)$')
  if model and #use[index + 1] == 40 then
    local _, _, requests, failed, input, output, nanos = unpack_from(LAYOUT.model, use[index + 1])
    kept_below[model] = math.min(requests, failed, input, output, nanos) < 0
  elseif use[index] == 'u' or match(use[index], '^[mk]:') then
    local ring = call('HGETALL', KEYS[5] .. ':' .. use[index])
    if #ring > 0 then windows[#windows + 1] = { use[index], ring } end
  end
end

local days, today = {}, floor(now / 86400000)
local created = tonumber(call('HGET', KEYS[2], 'created_at_ms') or '') or 0
for day = math.max(floor(created / 86400000), today - ARGV[2]), today + 1 do
  local rows, nanos, odd = call('HGETALL', record .. SUFFIX.day .. day), 0, {}
  for index = 1, #rows, 2 do
    local spent = match(rows[index + 1], '^%-?%d+ %-?%d+ %-?%d+ %-?%d+ (%-?%d+)$')
    nanos = nanos + (spent or 0)
    if not spent or kept_below[rows[index]] or string.find(rows[index + 1], '-', 1, true) then
      odd[#odd + 1], odd[#odd + 2] = rows[index], rows[index + 1]
    end
  end
  if #rows > 0 then days[#days + 1] = { day, format('%d', nanos), odd } end
end
return { now, 1, call('HMGET', record, 'bd', 'ba', 'p'), key_fields(record), doc, use, call('HGETALL', KEYS[4]), windows,
  days }

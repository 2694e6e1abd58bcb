--- @include period_end
-- Ends the budget periods that are over: spend starts again from 0 and the period gets a new number, so that what was
-- held in the old one is not taken from the new. A model's budget without a duration of its own follows the user's.
local function roll_periods(record, now)
  local flat, use = call('HGETALL', record .. SUFFIX.use), {}
  for index = 1, #flat, 2 do use[flat[index]] = flat[index + 1] end
  local write, gone = {}, { '' }
  local function put(field, text)
    write[#write + 1], write[#write + 2] = field, text
  end
  local function restart(entry)
    put('bs:' .. entry, '0')
    put('bh:' .. entry, '0')
    put('bp:' .. entry, (use['bp:' .. entry] or 0) + 1)
  end
  local user_ends = use.e and now >= tonumber(use.e)
  if user_ends then
    local duration, anchor = unpack(call('HMGET', record, 'bd', 'ba'))
    put('s', '0') put('h', '0') put('j', '0')
    put('p', (use.p or 0) + 1)
    put('e', period_end(duration, tonumber(anchor), now))
    gone[#gone + 1] = 'sm'
  end
  for field, value in pairs(use) do
    local family, name = string.match(field, '^(%l+):(.*)$')
    if family == 's' and user_ends then gone[#gone + 1] = field end
    if family == 'bs' and user_ends and not use['be:' .. name] then restart(name) end
    if family == 'be' and now >= tonumber(value) then
      local duration, anchor = string.match(call('HGET', record, 'b:' .. name) or '', '^%d+ (%w+) (%d+)$')
      restart(name)
      if duration then put(field, period_end(duration, tonumber(anchor), now)) else gone[#gone + 1] = field end
    end
  end
  if #write > 0 then call('HSET', record .. SUFFIX.use, unpack(write)) end
  call('HDEL', record .. SUFFIX.use, unpack(gone))
end

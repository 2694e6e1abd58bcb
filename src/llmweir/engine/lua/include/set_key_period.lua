--- @include period_end
--- @include edit_account
--- @include key_id
-- Sets the duration of the budget periods of an API key with limits, '' = none; the duration it has keeps its period.
local function set_key_period(record, use, hash, duration, now)
  local id = key_id(record, hash)
  if duration == (match(call('HGET', record, 'kd:' .. id) or '', '^%w+') or '') then return end
  if duration == '' then
    call('HDEL', record, 'kd:' .. id)
    return edit_account(use, 'k:' .. id, now, nil, -1)
  end
  call('HSET', record, 'kd:' .. id, format('%s %d', duration, now))
  edit_account(use, 'k:' .. id, now, nil, period_end(duration, now, now))
end

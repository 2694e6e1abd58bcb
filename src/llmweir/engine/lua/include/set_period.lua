--- @include period_end
--- @include edit_account
-- Sets the duration of a user's budget periods, '' = none. A period starts now; the duration it has already keeps the
-- one that runs.
local function set_period(record, use, duration, now)
  if duration == (call('HGET', record, 'bd') or '') then return end
  call('HDEL', record, 'bd', 'ba')
  call('HDEL', use, 'sm')
  if duration == '' then return edit_account(use, 'u', now, nil, -1) end
  call('HSET', record, 'bd', duration, 'ba', now)
  edit_account(use, 'u', now, nil, period_end(duration, now, now))
end

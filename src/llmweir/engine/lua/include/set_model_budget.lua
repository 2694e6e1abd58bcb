--- @include period_end
--- @include edit_account
-- Sets the budget of an entry: `value` is 'nanos' or 'nanos duration', `had` what the record had ('nanos duration
-- anchor'), which keeps its period if its duration is the same.
local function set_model_budget(record, use, entry, value, had, now)
  local nanos, duration = match(value, '^(%d+) ?(%w*)$')
  local had_duration, anchor = match(had or '', '^%d+ (%w+) (%d+)$')
  local ends
  if duration == '' then
    ends = -1
  elseif duration ~= had_duration then
    anchor, ends = format('%d', now), period_end(duration, now, now)
  end
  call('HSET', record, 'b:' .. entry, duration == '' and nanos or nanos .. ' ' .. duration .. ' ' .. anchor)
  edit_account(use, 'm:' .. entry, now, nil, ends)
end

--- @include period_end
-- Whether the budget period of a row that runs now ran at `at` already, in ms. A period that was set anew goes on with what
-- was spent before, so what came before it was set belongs to the first of them. `user_ends` is the user's own period's
-- end, which a model's budget without a duration of its own follows.
local function still_runs(record, row, user_ends, at)
  local family, name, ends = byte(row.name), string.sub(row.name, 3), row.ends
  local duration, anchor
  if family == 107 then duration, anchor = match(call('HGET', record, 'kd:' .. name) or '', '^(%w+) (%d+)$') end
  if family == 109 then duration, anchor = match(call('HGET', record, 'b:' .. name) or '', '^%d+ (%w+) (%d+)$') end
  if not duration and family ~= 107 then
    duration, anchor = unpack(call('HMGET', record, 'bd', 'ba'))
    ends = user_ends
  end
  return not duration or period_end(duration, anchor + 0, math.max(at, anchor + 0)) == ends
end

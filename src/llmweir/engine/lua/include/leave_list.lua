-- Takes `item`, a string as JSON, out of a list of strings in a field of the doc; an empty list is no field.
local function leave_list(doc, field, item)
  local list = call('HGET', doc, field) or '[]'
  local at = string.find(list, '[' .. item, 1, true) or string.find(list, ',' .. item, 1, true)
  if not at then return end
  local before, after = string.sub(list, 2, at - 1), string.sub(list, at + 1 + #item)
  local rest = before .. (before == '' and string.gsub(after, '^,', '') or after)
  if rest == ']' then call('HDEL', doc, field) else call('HSET', doc, field, '[' .. rest) end
end

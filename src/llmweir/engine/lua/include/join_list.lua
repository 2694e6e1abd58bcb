-- Adds `item`, a string as JSON, to a list of strings in a field of the doc, unless it is there. A quote inside a
-- string of JSON has a backslash before it, so the item can only be found where it is one.
local function join_list(doc, field, item)
  local list = call('HGET', doc, field) or '[]'
  if string.find(list, '[' .. item, 1, true) or string.find(list, ',' .. item, 1, true) then return end
  call('HSET', doc, field, string.sub(list, 1, -2) .. (list == '[]' and '' or ',') .. item .. ']')
end

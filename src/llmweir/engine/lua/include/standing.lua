--- @include open_rows
-- The use hash as `read` replies it: accounts taken apart, with their windows as they stand now.
local function standing(use, windows, now)
  local flat, limits, fields = call('HGETALL', use), '-1 -1 -1 -1 u', {}
  local function put(field, value) fields[#fields + 1], fields[#fields + 2] = field, string.format('%d', value) end
  for index = 1, #flat, 2 do
    local name = flat[index]
    if string.find(name, '^m:') then
      limits = limits .. '\n-1 -1 -1 -1 ' .. name
    elseif name ~= 'u' then
      fields[#fields + 1], fields[#fields + 2] = name, flat[index + 1]
    end
  end
  local rows, _, _, second = open_rows(limits, use, windows, now)
  for _, row in ipairs(rows) do
    local entry = string.match(row.name, '^m:(.*)$')
    local of, budget = entry and ':' .. entry or '', entry and 'b' or ''
    put(budget .. 's' .. of, row.spent)
    put(budget .. 'h' .. of, row.held)
    if row.ends >= 0 then put(budget .. 'e' .. of, row.ends) end
    put('r' .. of, row.requests)
    put('t' .. of, row.tokens)
    local last = row.moved and row.moved.left and row.moved.last or second
    put('w' .. of, (last + 61) * 1000 - now)
    put('n' .. of, row.running)
  end
  return fields
end

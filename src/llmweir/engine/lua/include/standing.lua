--- @include open_rows
-- The use hash as `read` replies it: accounts taken apart, with their windows as they stand now.
local function standing(use, windows, leases, now)
  local flat, of_model, fields = call('HGETALL', use), '', {}
  local function put(field, value) fields[#fields + 1], fields[#fields + 2] = field, format('%d', value) end
  for index = 1, #flat, 2 do
    local name = flat[index]
    if string.find(name, '^m:') then
      of_model = of_model .. '-1 -1 -1 ' .. name .. '\n'
    elseif name ~= 'u' then
      fields[#fields + 1], fields[#fields + 2] = name, flat[index + 1]
    end
  end
  local rows, _, _, second = open_rows(-1, -1, -1, -1, of_model, use, windows, now)
  for _, row in ipairs(rows) do
    local entry = match(row.name, '^m:(.*)$')
    local of, budget = entry and ':' .. entry or '', entry and 'b' or ''
    put(budget .. 's' .. of, row.spent)
    put(budget .. 'h' .. of, row.held)
    if row.ends >= 0 then put(budget .. 'e' .. of, row.ends) end
    put('r' .. of, row.requests)
    put('t' .. of, row.tokens)
    local last = row.moved and row.moved.left and row.moved.last or second
    put('w' .. of, (last + 61) * 1000 - now)
  end
  put('n', call('HLEN', leases))
  return fields
end

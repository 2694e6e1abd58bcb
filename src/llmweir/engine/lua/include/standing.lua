--- @include open_rows
-- The use hash as `read` replies it: its accounts, as they stand now, and the other fields as texts.
local function standing(use, windows, now)
  local flat, others, fields, accounts = call('HGETALL', use), {}, {}, {}
  for index = 1, #flat, 2 do
    local name = flat[index]
    if string.find(name, '^[mk]:') then
      others[#others + 1] = pack(LAYOUT.line, -1, -1, -1, -1, name)
    elseif name ~= 'u' then
      local value = flat[index + 1]
      if string.sub(name, 1, 2) == 's:' then value = format('%d', (unpack_from(LAYOUT.model, value))) end
      fields[#fields + 1], fields[#fields + 2] = name, value
    end
  end
  local rows, _, _, second = open_rows(-1, -1, -1, -1, table.concat(others), use, windows, now)
  for index, row in ipairs(rows) do
    local last = row.moved and row.moved.left and row.moved.last or second
    accounts[index] = { row.name, row.requests, row.tokens, (last + 61) * 1000 - now, row.running,
      format('%d', row.held), format('%d', row.spent), format('%d', row.ends) }
  end
  return accounts, fields
end

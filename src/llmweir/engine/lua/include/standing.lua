--- @include open_rows
-- The use hash as `read` replies it: its accounts, as they stand now, and the other fields as texts. Accounts are opened
-- some hundreds at a time: no command takes more than some thousands of arguments out of a list.
local function standing(use, windows, now)
  local flat, batches, fields, accounts = call('HGETALL', use), { {} }, {}, {}
  for index = 1, #flat, 2 do
    local name, batch = flat[index], batches[#batches]
    if string.find(name, '^[mk]:') then
      batch[#batch + 1] = pack(LAYOUT.line, -1, -1, -1, -1, name)
      if #batch == 500 then batches[#batches + 1] = {} end
    elseif name ~= 'u' then
      local value = flat[index + 1]
      if string.sub(name, 1, 2) == 's:' then value = format('%d', (unpack_from(LAYOUT.model, value))) end
      fields[#fields + 1], fields[#fields + 2] = name, value
    end
  end
  for place, batch in ipairs(batches) do
    local rows, _, _, second = open_rows(-1, -1, -1, -1, table.concat(batch), use, windows, now)
    for index = place == 1 and 1 or 2, #rows do -- the user's own once
      local row = rows[index]
      local last = row.moved and row.moved.left and row.moved.last or second
      accounts[#accounts + 1] = { row.name, row.requests, row.tokens, (last + 61) * 1000 - now, row.running,
        format('%d', row.held), format('%d', row.spent), format('%d', row.ends) }
    end
  end
  return accounts, fields
end

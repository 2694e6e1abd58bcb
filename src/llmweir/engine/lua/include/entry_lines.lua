-- The limits that hold for a model or prefix, as `pack_entries` writes them.
local function entry_lines(limits, widths, name)
  local lines, rows = {}, {}
  local function winner(of)
    if of[name] then return name end
    for _, width in ipairs(widths) do
      local entry = string.sub(name, 1, width) .. '*'
      if width < #name and of[entry] then return entry end
    end
  end
  for family, place in pairs({ r = 1, t = 2, b = 4 }) do
    local entry = winner(limits[family])
    if entry then
      if not rows[entry] then
        rows[entry] = { -1, -1, -1, -1, 'm:' .. entry }
        lines[#lines + 1] = rows[entry]
      end
      rows[entry][place] = limits[family][entry] + 0
    end
  end
  for index, row in ipairs(lines) do lines[index] = pack(LAYOUT.line, unpack(row)) end
  return table.concat(lines)
end

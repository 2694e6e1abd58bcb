--- @include key_id
--- @include drop_family
-- Writes a list of an API key: `lines` are 'm' and the models it may use, or 'a' and its aliases, name and model in turn.
local function set_key_list(record, hash, lines)
  local kind, id = string.sub(lines, 1, 1), key_id(record, hash)
  local family, widths, name = 'k' .. kind .. ':' .. id .. ':', {}, nil
  drop_family(record, family)
  for line in string.gmatch(string.sub(lines, 3), '[^\n]+') do
    if kind == 'm' then
      call('HSET', record, family .. line, 1)
      if string.sub(line, -1) == '*' then widths[#widths + 1] = #line - 1 end
    elseif name then
      call('HSET', record, family .. name, line)
      name = nil
    else
      name = line
    end
  end
  if kind ~= 'm' then return end
  table.sort(widths, function(one, other) return one > other end)
  if #widths > 0 then call('HSET', record, 'kw:' .. id, table.concat(widths, ',')) else call('HDEL', record, 'kw:' .. id) end
end

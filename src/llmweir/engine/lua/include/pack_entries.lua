-- Resolves the per-model limits of a record, so that an admission finds all that holds for a model in one field.
-- `e:NAME`, for every name or prefix that has a limit: a line (LAYOUT.line) an entry that holds for it, its rpm, tpm,
-- parallel and budget, -1 = none, and its account; each limit stands at the entry that wins, the name itself or the
-- longest prefix. `we`: the prefixes' lengths, longest first.
local function pack_entries(record)
  local flat, limits, names, seen = call('HGETALL', record), { r = {}, t = {}, b = {} }, {}, {}
  local widths = {}
  for index = 1, #flat, 2 do
    local family, name = match(flat[index], '^([rtbe]):(.*)$')
    if family == 'e' then
      call('HDEL', record, flat[index])
    elseif family then
      limits[family][name] = match(flat[index + 1], '^%d+')
      if not seen[name] then names[#names + 1], seen[name] = name, true end
      if string.find(name, '%*$') and not seen[#name] then widths[#widths + 1], seen[#name] = #name - 1, true end
    end
  end
  table.sort(widths, function(one, other) return one > other end)
  --- @include entry_lines
  for _, name in ipairs(names) do call('HSET', record, 'e:' .. name, entry_lines(limits, widths, name)) end
  if #widths > 0 then call('HSET', record, 'we', table.concat(widths, ',')) else call('HDEL', record, 'we') end
end

-- Finds the entry of a per-model family ('r:') that holds for a model: its own name, read by the caller as `exact`,
-- else the longest matching prefix ('gpt-4*'). `widths` are the lengths of the family's prefixes, longest first
-- ('7,4'). Returns the entry's name and its value, or nil.
local function entry_of(record, family, model, exact, widths)
  if exact then return model, exact end
  if not widths then return end
  for width in string.gmatch(widths, '%d+') do
    local entry = string.sub(model, 1, tonumber(width)) .. '*'
    local value = tonumber(width) <= #model and call('HGET', record, family .. entry)
    if value then return entry, value end
  end
end

-- The value of the longest entry of a family ('m:') with a `*` at its end that a model's name begins with, or nil.
-- `widths` are the lengths of the family's prefixes, longest first: '7,4'.
local function longest_prefix(record, family, model, widths)
  for width in string.gmatch(widths, '%d+') do
    local value = width + 0 <= #model and call('HGET', record, family .. string.sub(model, 1, width + 0) .. '*')
    if value then return value end
  end
end

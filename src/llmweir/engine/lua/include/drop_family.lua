-- Removes all fields of a hash that begin with `prefix`.
local function drop_family(hash, prefix)
  for _, field in ipairs(call('HKEYS', hash)) do
    if string.sub(field, 1, #prefix) == prefix then call('HDEL', hash, field) end
  end
end

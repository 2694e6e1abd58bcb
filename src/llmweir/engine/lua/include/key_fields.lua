-- The fields of a record that are its API keys, and their values in turn.
local function key_fields(record)
  local flat, fields = call('HGETALL', record), {}
  for index = 1, #flat, 2 do
    if string.sub(flat[index], 1, 2) == 'k:' then fields[#fields + 1], fields[#fields + 2] = flat[index], flat[index + 1] end
  end
  return fields
end

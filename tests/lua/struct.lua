-- What of the servers' `struct` library the scripts use, for fakeredis, which has none: '<', i1, i4, i8 and s.
local struct = {}

local function items(layout)
  return string.gmatch(layout, '(%a)(%d*)')
end

function struct.pack(layout, ...)
  local values, index, packed = { ... }, 0, {}
  for kind, size in items(layout) do
    index = index + 1
    local value = values[index]
    if kind == 's' then
      packed[#packed + 1] = value .. '\0'
    else
      local number = tonumber(value)
      for _ = 1, tonumber(size) do
        packed[#packed + 1] = string.char(number % 256)
        number = math.floor(number / 256)
      end
    end
  end
  return table.concat(packed)
end

function struct.unpack(layout, packed, at)
  local values, count = {}, 0
  at = at or 1
  for kind, size in items(layout) do
    count = count + 1
    if kind == 's' then
      local ends = string.find(packed, '\0', at, true)
      values[count] = string.sub(packed, at, ends - 1)
      at = ends + 1
    else
      local bytes, number = tonumber(size), 0
      local negative = string.byte(packed, at + bytes - 1) >= 128
      for index = at + bytes - 1, at, -1 do
        local digit = string.byte(packed, index)
        number = number * 256 + (negative and 255 - digit or digit)
      end
      values[count] = negative and -number - 1 or number
      at = at + bytes
    end
  end
  values[count + 1] = at
  return unpack(values, 1, count + 1)
end

return struct

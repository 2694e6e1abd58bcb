-- The time in ms: the server's own, unless a caller brings one (a replay, a test).
local function clock_ms(brought)
  if brought ~= '' then return tonumber(brought) end
  local time = call('TIME')
  return time[1] * 1000 + floor(time[2] / 1000)
end

-- Whether a caller may come in at all: false, or the name of what is in the way.
-- `key` is the record's field of the API key ('expiry_ms blocked'), read only where the caller came with one.
local function caller_verdict(exists, came_with_key, key, user_blocked, no_data_plane, now)
  if not exists then return 'unknown_user' end
  if came_with_key then
    if not key then return 'unknown_key' end
    local expiry, blocked = string.match(key, '^(%d+) (%d)$')
    if tonumber(expiry) > 0 and tonumber(expiry) <= now then return 'key_expired' end
    if blocked == '1' then return 'key_blocked' end
  end
  if user_blocked then return 'user_blocked' end
  if no_data_plane then return 'role_not_allowed' end
  return false
end

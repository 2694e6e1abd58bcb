-- Whether a caller may come in at all: nil, or the name of what is in the way; then the id of the API key, and its own
-- limits and flags if it has any ('' for none). `version` and `flags` are the record's, `key` its field of the key:
-- 'expiry_ms blocked id', then maybe 'rpm tpm parallel budget flags'; looked at only where the caller came with one.
-- Flags, '-' for none: b the user is blocked, n not on the data plane, d made from the default user's limits.
local function caller_verdict(record, version, flags, came_with_key, key, data_plane, default_digest, now)
  local key_id, key_limits = '-', ''
  if not version then return 'unknown_user' end
  if came_with_key then
    if not key then return 'unknown_key' end
    local expiry, blocked, id, limits = match(key, '^(%d+) (%d) (%d+) ?(.*)$')
    if expiry + 0 > 0 and expiry + 0 <= now then return 'key_expired' end
    if blocked == '1' then return 'key_blocked' end
    key_id, key_limits = id, limits
  end
  if string.find(flags, 'b') then return 'user_blocked' end
  if data_plane and string.find(flags, 'n') then return 'role_not_allowed' end
  if default_digest ~= '' and string.find(flags, 'd') and call('HGET', record, 'df') ~= default_digest then
    return 'stale_default'
  end
  return nil, key_id, key_limits
end

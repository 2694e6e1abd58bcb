--- @include expire_leases
--- @include roll_periods
-- Brings a user's account up to `now`: charges leases whose heartbeat stopped, ends budget periods that are over.
-- Returns how many leases there were.
local function catch_up(record, now, memo_ttl_ms)
  local expired = expire_leases(record, now, memo_ttl_ms)
  roll_periods(record, now)
  return expired
end

--- @include expire_leases
--- @include roll_periods
-- Brings a user's account up to `now`: charges leases whose heartbeat stopped, ends budget periods that are over.
local function catch_up(record, now, memo_ttl_ms)
  expire_leases(record, now, memo_ttl_ms)
  roll_periods(record, now)
end

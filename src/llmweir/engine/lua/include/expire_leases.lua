--- @include charge
--- @include is_tombstone
-- Charges every lease whose heartbeat stopped as it was reserved (the upstream has probably done the work), frees its
-- slot, and remembers it for `memo_ttl_ms`, so that a late settlement can still put it right.
-- `x` of the use hash is a time before which no lease ends; leases are renewed without moving it, so all are read then.
-- Returns how many expired.
local function expire_leases(record, now, memo_ttl_ms)
  local leases, use = record .. SUFFIX.leases, record .. SUFFIX.use
  local due = call('HGET', use, 'x')
  if not due or due + 0 > now then return 0 end
  local flat, first, expired = call('HGETALL', leases), nil, 0
  for index = 1, #flat, 2 do
    local id, lease = flat[index], flat[index + 1]
    local expiry = unpack_from(LAYOUT.expiry, lease)
    if expiry <= now then
      if not is_tombstone(lease) then
        call('SET', record .. SUFFIX.memo .. id, lease, 'PX', memo_ttl_ms) -- first: nothing is charged if that fails
        charge(record, lease, false)
        expired = expired + 1
      end
      call('HDEL', leases, id)
    elseif not first or expiry < first then
      first = expiry
    end
  end
  if first then call('HSET', use, 'x', format('%d', first)) else call('HDEL', use, 'x') end
  return expired
end

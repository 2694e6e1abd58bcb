--- @include charge
-- Charges every lease whose heartbeat stopped as it was reserved (the upstream has probably done the work), frees its
-- slot, and remembers it for `memo_ttl_ms`, so that a late settlement can still put it right.
-- `x` of the use hash is a time before which no lease ends; leases are renewed without moving it, so all are read then.
local function expire_leases(record, now, memo_ttl_ms)
  local leases, use = record .. SUFFIX.leases, record .. SUFFIX.use
  local due = call('HGET', use, 'x')
  if not due or due + 0 > now then return end
  local flat, first = call('HGETALL', leases), nil
  for index = 1, #flat, 2 do
    local id, lease = flat[index], flat[index + 1]
    local expiry = unpack_from(LAYOUT.expiry, lease)
    if expiry <= now then
      charge(record, lease, false)
      call('SET', record .. SUFFIX.memo .. id, lease, 'PX', memo_ttl_ms)
      call('HDEL', leases, id)
    elseif not first or expiry < first then
      first = expiry
    end
  end
  if first then call('HSET', use, 'x', format('%d', first)) else call('HDEL', use, 'x') end
end

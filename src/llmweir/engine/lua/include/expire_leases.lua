--- @include charge
-- Charges every lease whose heartbeat stopped as it was reserved (the upstream has probably done the work), frees its
-- slot, and remembers it for `memo_ttl_ms`, so that a late settlement can still put it right.
-- `x` of the use hash is a time before which no lease can be due.
local function expire_leases(record, now, memo_ttl_ms)
  local leases, held = record .. SUFFIX.leases, record .. SUFFIX.held
  for _, id in ipairs(call('ZRANGEBYSCORE', leases, '-inf', now)) do
    local reservation = call('HGET', held, id)
    if reservation then
      charge(record, reservation, false, false)
      call('SET', record .. SUFFIX.memo .. id, reservation, 'PX', memo_ttl_ms)
      call('HDEL', held, id)
    end
    call('ZREM', leases, id)
  end
  local first = call('ZRANGE', leases, 0, 0, 'WITHSCORES')
  if first[2] then
    call('HSET', record .. SUFFIX.use, 'x', tonumber(first[2]))
  else
    call('HDEL', record .. SUFFIX.use, 'x')
  end
end

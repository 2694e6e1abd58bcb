-- Deletes a user with all keys, limits and counters. What was used stays in the rows of its days, and what is in
-- flight is charged as held there; a settlement that comes later still puts that right.
--
-- KEYS[1] the user's record     KEYS[2] its doc     KEYS[3] its use     KEYS[4] its leases
-- ARGV[1] time in ms, '' = the server's             ARGV[2] memo life in ms
--
-- Reply: 1, or 0 where there is no such user.
--
--- @include clock_ms
--- @include catch_up
--- @include close_days
--- @include is_tombstone
local record, use, leases, now = KEYS[1], KEYS[3], KEYS[4], clock_ms(ARGV[1])

-- Read: is there one?
if call('EXISTS', record) == 0 then return 0 end

-- Write.
catch_up(record, now, ARGV[2])
local flat = call('HGETALL', leases)
for index = 1, #flat, 2 do
  local lease = flat[index + 1]
  if not is_tombstone(lease) then
    local expiry, second, tokens, nanos, _, _, model = unpack_from(LAYOUT.lease, lease)
    local memo = pack(LAYOUT.lease, expiry, second, tokens, nanos, -1, '-', model) -- of no account any more
    call('SET', record .. SUFFIX.memo .. flat[index], memo, 'PX', ARGV[2])
    charge(record, lease, false)
  end
end
close_days(record)
for _, field in ipairs(call('HKEYS', use)) do call('DEL', record .. SUFFIX.window .. ':' .. field) end
call('DEL', record, KEYS[2], use, leases)
return 1

-- Renews the leases of requests of one user that are still running.
--
-- KEYS[1] the user's leases
-- ARGV[1] time in ms, '' = the server's    ARGV[2] lease life in ms    ARGV[3..] request ids
--
-- Reply: how many of them still had a lease; one that expired was charged and stays so.
--
--- @include clock_ms
local expiry, renewed = clock_ms(ARGV[1]) + ARGV[2], 0
for index = 3, #ARGV do
  local lease = call('HGET', KEYS[1], ARGV[index])
  if lease then
    call('HSET', KEYS[1], ARGV[index], pack(LAYOUT.expiry, expiry) .. string.sub(lease, 9))
    renewed = renewed + 1
  end
end
return renewed

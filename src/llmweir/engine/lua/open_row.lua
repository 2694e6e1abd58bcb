-- Notes that a record is about to be written, so that a crash after it is found out.
--
-- KEYS[1] the catalogue's rows     KEYS[2] its entries being written, by time
-- ARGV[1] time in ms, '' = the server's     ARGV[2] id of the entry     ARGV[3] a nonce in hex
-- ARGV[4] how long a writer may take, in ms
--
-- Reply: how many writers are at work on this record, this one included.
--
--- @include clock_ms
--- @include row_parts
local now = clock_ms(ARGV[1])

-- Read: who else is at work?
local writers, _, lines = row_parts(call('HGET', KEYS[1], ARGV[2]))
local since = call('ZSCORE', KEYS[2], ARGV[2])
if not since or math.abs(now - tonumber(since)) >= tonumber(ARGV[4]) then writers = 0 end

-- Write.
call('HSET', KEYS[1], ARGV[2], format('%d %s\n%s', writers + 1, ARGV[3], lines))
call('ZADD', KEYS[2], now, ARGV[2])
return writers + 1

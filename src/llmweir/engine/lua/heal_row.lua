-- Files an entry as its record is, unless its row has changed since before the record was read.
--
-- KEYS[1] the catalogue's base     KEYS[2] its rows     KEYS[3] its entries being written, by time
-- ARGV[1] time in ms, '' = the server's     ARGV[2] id of the entry     ARGV[3] its row as it was, '' = none
-- ARGV[4] a new nonce in hex     ARGV[5] lines of the row, '' = there is no record
-- ARGV[6] how long a writer may take, in ms
--
-- Reply: 2 filed; 1 filed, and a writer may still be at work; 0 the row has changed.
--
--- @include clock_ms
--- @include row_parts
--- @include file_row
local now = clock_ms(ARGV[1])

-- Read, decide.
local row = call('HGET', KEYS[2], ARGV[2]) or ''
if row ~= ARGV[3] then return 0 end
local writers, nonce, lines = row_parts(row)
local since = call('ZSCORE', KEYS[3], ARGV[2])
local at_work = writers > 0 and since and math.abs(now - tonumber(since)) < tonumber(ARGV[6])

-- Write.
file_row(KEYS[1], ARGV[2], lines, ARGV[5])
if not at_work then
  writers, nonce = 0, ARGV[4]
  call('ZREM', KEYS[3], ARGV[2])
end
if writers == 0 and ARGV[5] == '' then
  call('HDEL', KEYS[2], ARGV[2])
else
  call('HSET', KEYS[2], ARGV[2], format('%d %s\n%s', writers, nonce, ARGV[5]))
end
return at_work and 1 or 2

-- Files an entry under its places once its record is written. Where another writer came in between, what this one read
-- may be old: the entry stays among those being written, for the next listing to file.
--
-- KEYS[1] the catalogue's base     KEYS[2] its rows     KEYS[3] its entries being written, by time
-- ARGV[1] id of the entry     ARGV[2] nonce of the opening     ARGV[3] a new nonce in hex
-- ARGV[4] lines of the row, '' = there is no record
--
-- Reply: 1 filed; 0 left to the next listing.
--
--- @include row_parts
--- @include file_row

-- Read, decide.
local writers, nonce, lines = row_parts(call('HGET', KEYS[2], ARGV[1]))
local alone = nonce == ARGV[2] and writers == 1

-- Write.
if alone then
  file_row(KEYS[1], ARGV[1], lines, ARGV[4])
  lines = ARGV[4]
  call('ZREM', KEYS[3], ARGV[1])
else
  call('ZADD', KEYS[3], 'NX', 0, ARGV[1])
end
if alone and lines == '' then
  call('HDEL', KEYS[2], ARGV[1])
else
  call('HSET', KEYS[2], ARGV[1], format('%d %s\n%s', math.max(0, writers - 1), ARGV[3], lines))
end
return alone and 1 or 0

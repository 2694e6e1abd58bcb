--- @include key_id
-- Remembers whose an API key's hash was that is replaced by another, until `ends`: what is settled late may come with it.
local function remember_key(record, hash, now, ends)
  for _, field in ipairs(call('HKEYS', record)) do
    if string.sub(field, 1, 3) == 'ko:' and match(call('HGET', record, field), '%d+$') + 0 <= now then
      call('HDEL', record, field)
    end
  end
  call('HSET', record, 'ko:' .. hash, format('%s %d', key_id(record, hash), ends))
end

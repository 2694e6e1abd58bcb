--- @include key_id
--- @include drop_family
-- Removes an API key with all that is its own; what it has spent stays with the user.
local function drop_key(record, doc, use, hash)
  if call('HEXISTS', record, 'k:' .. hash) == 0 then return end
  local id = key_id(record, hash)
  for _, family in ipairs({ 'km:', 'ka:' }) do drop_family(record, family .. id .. ':') end
  call('HDEL', record, 'k:' .. hash, 'kw:' .. id, 'kd:' .. id)
  call('HDEL', use, 'k:' .. id, 'ks:' .. id)
  call('DEL', record .. SUFFIX.window .. ':k:' .. id)
  call('HDEL', doc, 'key:' .. hash)
end

--- @include longest_prefix
-- What an API key with limits of its own adds to an admission: its line of limits (see `open_rows`), the model that is
-- meant by the one asked for (a key's alias goes before the user's, `target`), and a reason to refuse it, or nil.
-- `limits` are 'rpm tpm parallel budget flags'; flags, '-' for none: a it has aliases, m it has a list of models.
local function key_row(record, key, limits, asked, target)
  local rpm, tpm, parallel, budget, flags = match(limits, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  if string.find(flags, 'a') then target = call('HGET', record, 'ka:' .. key .. ':' .. asked) or target end
  if string.find(flags, 'm') and target ~= '' then
    local family = 'km:' .. key .. ':'
    local listed, widths = unpack(call('HMGET', record, family .. target, 'kw:' .. key))
    if not listed and not longest_prefix(record, family, target, widths or '') then
      return nil, nil, 'model_not_allowed'
    end
  end
  return pack(LAYOUT.line, rpm + 0, tpm + 0, parallel + 0, budget + 0, 'k:' .. key), target
end

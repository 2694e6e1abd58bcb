-- Whether a record is still as a change says that it must be; one that says nothing of the kind always may be made.
local function still_so(record, doc, what, name, value)
  if what == 'needs' then return call('HEXISTS', record, 'k:' .. name) == 1 end
  if what == 'lacks' then return call('HEXISTS', record, 'k:' .. name) == 0 end
  if what == 'key_is' then return match(call('HGET', record, 'k:' .. name) or '', '^%d+ %d') == value end
  return what ~= 'doc_is' or call('HGET', doc, name) == value
end

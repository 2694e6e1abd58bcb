-- Packs what every admission reads of a record into few fields. `p` (LAYOUT.record): the user's own limits, rpm, tpm,
-- parallel and budget, -1 = none; version, flags and widths (`pack_entries`), '-' = none. `caller_verdict` and
-- `model_verdict` explain the flags.
local function pack_record(record, version)
  local read = call('HMGET', record, 'bl', 'nd', 'df', 'ml', 'cc', 'rl', 'tl', 'pl', 'b', 'we')
  local flags = (read[1] and 'b' or '') .. (read[2] and 'n' or '') .. (read[3] and 'd' or '') .. (read[4] and 'm' or '')
    .. (read[5] and 'c' or '')
  call('HSET', record, 'p', pack(LAYOUT.record, (read[6] or -1) + 0, (read[7] or -1) + 0, (read[8] or -1) + 0,
    (read[9] or -1) + 0, format('%d', version), flags == '' and '-' or flags, read[10] or '-'))
end

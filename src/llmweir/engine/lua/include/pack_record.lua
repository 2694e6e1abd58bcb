-- Packs what every admission reads of a record into few fields. `p`: 'version flags widths rpm tpm parallel budget',
-- the last four the user's own limits; -1 = no limit, `-` = no flags, no widths (`pack_entries`).
-- `caller_verdict` and `model_verdict` explain the flags.
local function pack_record(record, version)
  local read = call('HMGET', record, 'bl', 'nd', 'df', 'ml', 'cc', 'rl', 'tl', 'pl', 'b', 'we')
  local flags = (read[1] and 'b' or '') .. (read[2] and 'n' or '') .. (read[3] and 'd' or '') .. (read[4] and 'm' or '')
    .. (read[5] and 'c' or '')
  call('HSET', record, 'p', format('%d %s %s %s %s %s %s', version, flags == '' and '-' or flags,
    read[10] or '-', read[6] or '-1', read[7] or '-1', read[8] or '-1', read[9] or '-1'))
end

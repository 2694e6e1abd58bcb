-- Takes a row of a catalogue apart: how many writers are at work on the record, the nonce of the row's last change,
-- and its lines. A row is 'writers nonce', a new line, and the lines, each with its end.
local function row_parts(row)
  local writers, nonce, lines = match(row or '', '^(%d+) (%x+)\n(.*)$')
  return tonumber(writers or 0), nonce, lines or ''
end

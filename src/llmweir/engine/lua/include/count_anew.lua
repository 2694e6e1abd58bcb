--- @include open_rows
--- @include longest_prefix
--- @include made_since
--- @include count_past
--- @include day_add
--- @include charge_model
--- @include cross_soft_budget
-- Counts a request that has no lease, admitted at `at`, in ms: in the windows whose span it still lies in, in the budget
-- periods that ran then and still do, and in the row of its day; a key or a user that is gone leaves the day's row alone.
-- Returns spend and soft budget, in nanos, where this crossed it.
local function count_anew(record, use, windows, key_hash, model, at, now, input, output, nanos, failed)
  local at_second = floor(at / 1000)
  local packed, key, entries, was = unpack(call('HMGET', record, 'p', 'k:' .. key_hash, 'e:' .. model, 'ko:' .. key_hash))
  if not packed or made_since(record, at_second) then
    return day_add(record, floor(at_second / 86400), model, 1, failed, input, output, nanos)
  end
  local rpm, tpm, parallel, budget, _, _, widths = unpack_from(LAYOUT.record, packed)
  local others = entries or widths ~= '-' and longest_prefix(record, 'e:', model, widths) or ''
  local key_id = match(key or '', '^%d+ %d (%d+)') or match(was or '', '^(%d+) ')
  if key_id and call('HEXISTS', use, 'k:' .. key_id) == 1 then
    others = pack(LAYOUT.line, -1, -1, -1, -1, 'k:' .. key_id) .. others
  elseif key_id and call('HEXISTS', use, 'ks:' .. key_id) == 1 then
    call('HINCRBY', use, 'ks:' .. key_id, format('%d', nanos))
  end
  local rows, _, _, second = open_rows(rpm, tpm, parallel, budget, others, use, windows, now)
  local is_running
  for index = #rows, 1, -1 do -- the user's own last
    is_running = count_past(record, use, windows, rows[index], rows[1].ends, at, second, input + output, nanos)
  end
  local had = call('HGET', use, 's:' .. model)
  local spent = is_running and nanos or 0
  call('HSET', use, charge_model(record, use, model, had, at_second, spent, 1, failed, input, output, nanos))
  if is_running then return cross_soft_budget(use, rows[1].spent) end
end

--- @include window_correct
--- @include day_add
-- Settles one reservation: `held`, the text admit wrote, becomes what was really used. Tokens go into the slot they
-- were held in, money into the budget period it was held in, while those still run; the day's row gets all of it.
-- `actual`: input, output (tokens), nanos, failed (0 or 1), cancelled (the request never was); or nil: charged as held
-- (an expired lease). `already`: it was charged so before, then only the difference moves.
-- Returns spend and soft budget, in nanos, when this crossed the soft budget for the first time in the period.
local function charge(record, held, actual, already)
  local second, held_tokens, held_nanos, period, model_period, model, rpm_entry, tpm_entry, budget_entry =
    string.match(held, '^(%d+) (%d+) (%d+) (%d+) (%d+)\n(.*)\n(.*)\n(.*)\n(.*)$')
  actual = actual or { input = held_tokens, output = 0, nanos = held_nanos, failed = 0 }
  second = tonumber(second)
  local function correct(kind, difference)
    if difference == 0 then return end
    local window = record .. SUFFIX.window
    window_correct(window, second, kind, difference)
    if rpm_entry ~= '' then window_correct(window .. ':' .. rpm_entry, second, kind, difference) end
    if tpm_entry ~= '' and tpm_entry ~= rpm_entry then
      window_correct(window .. ':' .. tpm_entry, second, kind, difference)
    end
  end
  correct('t', actual.input + actual.output - held_tokens)
  if actual.cancelled then correct('r', -1) end
  local use = record .. SUFFIX.use
  local read = call('HMGET', use, 'p', 's', 'h', 's:' .. model, 'g', 'sb', 'sm',
    'bp:' .. budget_entry, 'bs:' .. budget_entry, 'bh:' .. budget_entry)
  local spent, released = actual.nanos - (already and held_nanos or 0), already and 0 or held_nanos
  local write, spend, crossed = { 'g', (read[5] or 0) + spent }, nil, nil
  if (read[1] or '0') == period then
    spend = (read[2] or 0) + spent
    crossed = read[6] and not read[7] and spend >= tonumber(read[6])
    write = { 'g', write[2], 's', spend, 'h', (read[3] or 0) - released, 's:' .. model, (read[4] or 0) + spent }
    if crossed then write[9], write[10] = 'sm', 1 end
  end
  if budget_entry ~= '' and (read[8] or '0') == model_period then
    write[#write + 1], write[#write + 2] = 'bs:' .. budget_entry, (read[9] or 0) + spent
    write[#write + 1], write[#write + 2] = 'bh:' .. budget_entry, (read[10] or 0) - released
  end
  call('HSET', use, unpack(write))
  if already or not actual.cancelled then
    day_add(record, second, model, already and 0 or 1, actual.failed, actual.input - (already and held_tokens or 0),
      actual.output, spent)
  end
  if crossed then return spend, read[6] end
end

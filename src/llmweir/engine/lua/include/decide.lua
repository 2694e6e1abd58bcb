-- Whether every limit of every row has room for one more request (nil: there is a budget and no price), and the tokens
-- and nanos to hold: no more than a limit itself, nor than what spending alone has left of a budget, nor less than the
-- `least` that was asked.
local function decide(rows, least_tokens, tokens, least_nanos, nanos)
  local costs = nanos > 0
  for index = 1, #rows do
    local row = rows[index]
    if row.tpm >= 0 and tokens > row.tpm then tokens = math.max(row.tpm, least_tokens) end
    if row.budget >= 0 then
      if nanos < 0 then return nil end
      if nanos > row.budget - row.spent then nanos = math.max(row.budget - row.spent, least_nanos) end
    end
  end
  if nanos < 0 then nanos = 0 end
  for index = 1, #rows do
    local row = rows[index]
    if row.rpm >= 0 and row.requests >= row.rpm
      or row.tpm >= 0 and tokens > 0 and (row.tokens + tokens > row.tpm or least_tokens > row.tpm)
      or row.parallel >= 0 and row.running >= row.parallel
      or row.budget >= 0 and (row.spent + row.held + nanos > row.budget or costs and row.spent >= row.budget) then
      return false, tokens, nanos
    end
  end
  return true, tokens, nanos
end

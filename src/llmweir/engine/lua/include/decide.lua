-- Whether every limit of every row has room for one more request (nil: there is a budget and no price), and the tokens
-- and nanos to hold: no more than a limit itself, nor than what spending alone has left of a budget, nor less than the
-- `least` that was asked.
local function decide(rows, least_tokens, tokens, least_nanos, nanos)
  local costs = nanos > 0
  for index = 1, #rows do
    local row = rows[index]
    local tpm, budget = row.tpm, row.budget
    if tpm >= 0 and tokens > tpm then tokens = math.max(tpm, least_tokens) end
    if budget >= 0 then
      if nanos < 0 then return nil end
      if nanos > budget - row.spent then nanos = math.max(budget - row.spent, least_nanos) end
    end
  end
  if nanos < 0 then nanos = 0 end
  for index = 1, #rows do
    local row = rows[index]
    local rpm, tpm, parallel, budget, spent = row.rpm, row.tpm, row.parallel, row.budget, row.spent
    if rpm >= 0 and row.requests >= rpm
      or tpm >= 0 and tokens > 0 and (row.tokens + tokens > tpm or least_tokens > tpm)
      or parallel >= 0 and row.running >= parallel
      or budget >= 0 and (spent + row.held + nanos > budget or costs and spent >= budget) then
      return false, tokens, nanos
    end
  end
  return true, tokens, nanos
end

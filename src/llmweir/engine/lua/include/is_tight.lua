-- 1 if one more request of this size might not fit as long as this one, which is counted, is not settled; else 0. Others
-- may follow while it runs, so half of the parallel slots taken is tight already.
local function is_tight(rows, tokens, nanos)
  for index = 1, #rows do
    local row = rows[index]
    local parallel, tpm, budget = row.parallel, row.tpm, row.budget
    if parallel >= 0 and row.running * 2 >= parallel or tpm >= 0 and row.tokens + tokens > tpm
      or budget >= 0 and row.spent + row.held + nanos > budget then
      return 1
    end
  end
  return 0
end

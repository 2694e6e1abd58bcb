-- Takes a claim apart: its owner, how many writers are at work on the owner's record, whether they still may be,
-- since when in ms, its nonce. A claim is 'ms writers nonce owner'; what is not one has no owner and nobody at work.
local function claim_parts(claim, now, grace)
  local since, writers, nonce, owner = match(claim or '', '^(%d+) (%d+) (%x+) (.*)$')
  if not owner then return nil, 0, false end
  since, writers = tonumber(since), tonumber(writers)
  return owner, writers, writers > 0 and math.abs(now - since) < grace, since, nonce
end

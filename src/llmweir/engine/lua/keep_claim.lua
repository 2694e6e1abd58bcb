-- Notes that a writer has done its work: the owner's record has the name now, or never will by this writer.
--
-- KEYS[1] the claim
-- ARGV[1] owner
--
-- Reply: 1 the claim is still the owner's; 0 it is not, somebody took it over.
--
--- @include claim_parts

-- Read, decide.
local owner, writers, _, since, nonce = claim_parts(call('GET', KEYS[1]), 0, 0)
if owner ~= ARGV[1] then return 0 end

-- Write: one writer less.
call('SET', KEYS[1], format('%d %d %s %s', since, math.max(0, writers - 1), nonce, owner))
return 1

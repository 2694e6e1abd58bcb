-- Frees a name that its owner's record does not have any more.
--
-- KEYS[1] the claim
-- ARGV[1] time in ms, '' = the server's     ARGV[2] the claim as it was before the record was looked at
-- ARGV[3] how long a writer may take, in ms
--
-- Reply: 1 free; 0 it has changed since, or a writer may be about to give the name to the record.
--
--- @include clock_ms
--- @include claim_parts

-- Read, decide.
local claim = call('GET', KEYS[1])
local _, _, at_work = claim_parts(claim, clock_ms(ARGV[1]), tonumber(ARGV[3]))
if claim ~= ARGV[2] or at_work then return 0 end

-- Write.
call('DEL', KEYS[1])
return 1

-- Claims a name that must be unique for an owner, whose record is about to be written.
--
-- KEYS[1] the claim
-- ARGV[1] time in ms, '' = the server's     ARGV[2] owner     ARGV[3] a nonce in hex
-- ARGV[4] another's claim, as it was when it was found unconfirmed and nobody at work; '' = none
-- ARGV[5] how long a writer may take, in ms
--
-- Reply: { 1 } claimed; { 0, claim, owner, 1 or 0 } another owner has it, whose writer may (1) be at work still.
--
--- @include clock_ms
--- @include claim_parts
local now = clock_ms(ARGV[1])

-- Read: whose is it?
local claim = call('GET', KEYS[1])
local owner, writers, at_work = claim_parts(claim, now, tonumber(ARGV[5]))

-- Decide.
if owner and owner ~= ARGV[2] and claim ~= ARGV[4] then
  return { 0, claim, owner, at_work and 1 or 0 }
end
local others = owner == ARGV[2] and at_work and writers or 0

-- Write.
call('SET', KEYS[1], format('%d %d %s %s', now, others + 1, ARGV[3], ARGV[2]))
return { 1 }

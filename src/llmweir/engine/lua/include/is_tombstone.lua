-- Whether a lease is none: it stands where a request was cancelled, or settled, whose admission may still be on its way.
-- Admitting finds the id taken and counts nothing. It has no key and no model, so no lease is as short.
local function is_tombstone(lease) return #lease == 38 end

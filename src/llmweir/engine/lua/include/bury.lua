-- Leaves a tombstone (see `is_tombstone`) in place of a lease that is not there (yet), until `expiry`. Where there is no
-- user, nothing can be admitted.
local function bury(record, id, expiry)
  if call('EXISTS', record) == 0 then return end
  call('HSETNX', record .. SUFFIX.leases, id, pack(LAYOUT.lease, expiry, 0, 0, 0, 0, '', ''))
  call('HSETNX', record .. SUFFIX.use, 'x', format('%d', expiry))
end

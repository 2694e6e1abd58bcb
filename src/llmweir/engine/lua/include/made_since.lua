-- Whether a user was made anew after `second`, in which a lease was taken that has expired since: a memo outlives its
-- user. No lease is so short that it could expire, and its user be deleted and made again, within one second.
local function made_since(record, second)
  return floor((call('HGET', record .. SUFFIX.doc, 'created_at_ms') or 0) / 1000) > second
end

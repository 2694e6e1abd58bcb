--- @include new_account
--- @include with_budget
-- Writes an API key into a record; `text` is 'expiry blocked', or that and its own limits, 'rpm tpm parallel budget
-- flags'. With those it has an account of its own from then on, which goes on with what it has spent before.
local function set_key(record, use, hash, text, now)
  local state, limits = match(text, '^(%S+ %S+)(.*)$')
  local had_id, had_limits = match(call('HGET', record, 'k:' .. hash) or '', '^%S+ %S+ (%d+)(.*)$')
  local id = had_id or format('%d', call('HINCRBY', record, 'kn', 1))
  if not had_id then call('HSET', use, 'ks:' .. id, 0) end
  if limits == '' and (had_limits or '') ~= '' then limits = ' -1 -1 -1 -1 -' end
  call('HSET', record, 'k:' .. hash, state .. ' ' .. id .. limits)
  if limits ~= '' and call('HEXISTS', use, 'k:' .. id) == 0 then
    local spent = call('HGET', use, 'ks:' .. id) or 0
    call('HSET', use, 'k:' .. id, with_budget(new_account(floor(now / 1000)), 0, spent + 0))
    call('HDEL', use, 'ks:' .. id)
  end
end

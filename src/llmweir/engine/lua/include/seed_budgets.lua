--- @include longest_prefix
--- @include edit_account
-- Lets the new budgets of a record (`fresh`, by account) begin with what the models they hold for have spent in the
-- user's period.
local function seed_budgets(record, use, fresh, now)
  local flat, widths = call('HGETALL', use), call('HGET', record, 'we') or ''
  for index = 1, #flat, 2 do
    local model, at = match(flat[index], '^s:(.*)$'), 1
    local lines = model and (call('HGET', record, 'e:' .. model) or longest_prefix(record, 'e:', model, widths)) or ''
    while at <= #lines do
      local _, _, _, budget, account, behind = unpack_from(LAYOUT.line, lines, at)
      if budget >= 0 and fresh[account] then
        fresh[account] = fresh[account] + unpack_from(LAYOUT.model, flat[index + 1])
      end
      at = behind
    end
  end
  for account, spent in pairs(fresh) do edit_account(use, account, now, spent) end
end

--- @include longest_prefix
--- @include edit_account
-- Lets the new budgets of a record (`fresh`, by account) begin with what the models they hold for have spent in the
-- user's period.
local function seed_budgets(record, use, fresh, now)
  local flat, widths = call('HGETALL', use), call('HGET', record, 'we') or ''
  for index = 1, #flat, 2 do
    local model = match(flat[index], '^s:(.*)$')
    local limits = model and (call('HGET', record, 'e:' .. model) or longest_prefix(record, 'e:', model, widths)) or ''
    for budget, account in string.gmatch(limits, '(%S+) (m:[^\n]*)') do
      if budget ~= '-1' and fresh[account] then fresh[account] = fresh[account] + flat[index + 1] end
    end
  end
  for account, spent in pairs(fresh) do edit_account(use, account, now, spent) end
end

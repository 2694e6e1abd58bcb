--- @include longest_prefix
-- Whether a caller whose record has lists may use this model and these cache controls (a line each): nil, or what is
-- in the way. Flags: m there is a list of models, c one of cache controls.
local function model_verdict(record, flags, model, cache_controls)
  if string.find(flags, 'm') and model ~= '' then
    local listed, widths = unpack(call('HMGET', record, 'm:' .. model, 'wm'))
    if not listed and not longest_prefix(record, 'm:', model, widths or '') then return 'model_not_allowed' end
  end
  if string.find(flags, 'c') then
    for control in string.gmatch(cache_controls, '[^\n]+') do
      if call('HEXISTS', record, 'c:' .. control) == 0 then return 'cache_control_not_allowed' end
    end
  end
end

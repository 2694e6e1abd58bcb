--- @include day_add
-- Moves the row of the day that a model's field of the use hash keeps (see `charge_model`) to where it stays; returns
-- what is left of the field.
local function close_day(record, model, field)
  local spent, day, requests, failed, input, output, nanos = unpack_from(LAYOUT.model, field)
  if requests ~= 0 or failed ~= 0 or input ~= 0 or output ~= 0 or nanos ~= 0 then
    day_add(record, day, model, requests, failed, input, output, nanos)
  end
  return pack(LAYOUT.model, spent, day, 0, 0, 0, 0, 0)
end

-- Gives an entry exactly the places that `after` lists, where it had those of `before`. The first line is the time of
-- creation in ms; then `c` + suffix: a place by creation; `l` + suffix + tab + text: a place by text.
local function file_row(base, id, before, after)
  local kept, created = {}, match(after, '^%d+')
  for line in string.gmatch(after, '[^\n]+') do
    local kind, suffix, text = match(line, '^([cl])([^\t]*)\t?(.*)$')
    if kind then
      kept[line] = true
      call('ZADD', base .. suffix, kind == 'c' and created or 0, kind == 'c' and id or text .. '\0' .. id)
    end
  end
  for line in string.gmatch(before, '[^\n]+') do
    local kind, suffix, text = match(line, '^([cl])([^\t]*)\t?(.*)$')
    if kind and not kept[line] then
      call('ZREM', base .. suffix, kind == 'c' and id or text .. '\0' .. id)
    end
  end
end

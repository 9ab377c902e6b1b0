-- Small helpers for plugins. Pure functions; nothing here waits.

local util = {}


--- True when a list holds a value.
-- @param list table a list, may be nil
-- @param wanted any
-- @return boolean
function util.contains(list, wanted)
  for _, value in ipairs(list or {}) do
    if value == wanted then
      return true
    end
  end
  return false
end


--- Gives a new list with what fn makes of each element.
-- @param list table
-- @param fn function called with the element and its position
-- @return table
function util.map(list, fn)
  local result = {}
  for i, value in ipairs(list) do
    result[i] = fn(value, i)
  end
  return result
end


--- Gives a new list of the elements that fn says true to.
-- @param list table
-- @param fn function
-- @return table
function util.filter(list, fn)
  local result = {}
  for _, value in ipairs(list) do
    if fn(value) then
      result[#result + 1] = value
    end
  end
  return result
end


--- Gives the names of a table's fields in order.
-- @param fields table with text names
-- @return table
function util.sorted_keys(fields)
  local names = {}
  for name in pairs(fields) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end


--- Gives a shallow copy, with the fields of `changes` put over it.
-- @param fields table
-- @param changes table may be nil
-- @return table
function util.merge(fields, changes)
  local result = {}
  for name, value in pairs(fields) do
    result[name] = value
  end
  for name, value in pairs(changes or {}) do
    result[name] = value
  end
  return result
end


--- Splits a text at a plain separator; the pieces are trimmed, empty ones dropped.
-- @param text string
-- @param separator string one character, normally ","
-- @return table list of texts
function util.split(text, separator)
  local pieces = {}
  local from = 1
  while from <= #text + 1 do
    local at = text:find(separator, from, true) or #text + 1
    local piece = text:sub(from, at - 1):match("^%s*(.-)%s*$")
    if piece ~= "" then
      pieces[#pieces + 1] = piece
    end
    from = at + 1
  end
  return pieces
end


return util

--- Small conversions between rows of gw's lists and what REST surfaces show.
local iso_time = require("iso_time")

local row_view = {}


--- The value, or JSON's null when there is none (a missing member is not the same to clients).
-- @param value any
-- @return any
function row_view.or_null(value)
  if value == nil then
    return json.null
  end
  return value
end


--- The value, or nil when it is JSON's null.
-- @param value any
-- @return any
function row_view.or_nil(value)
  if value == json.null then
    return nil
  end
  return value
end


--- Milliseconds as ISO 8601 text, or null.
-- @param ms number, nil or json.null
-- @return string or json.null
function row_view.time(ms)
  if type(ms) ~= "number" then
    return json.null
  end
  return iso_time.format(ms)
end


--- A copy without members that are null: "not given" for services that tell null from absent.
-- @param values table
-- @return table
function row_view.without_nulls(values)
  local out = {}
  for name, value in pairs(values) do
    if value ~= json.null then
      out[name] = value
    end
  end
  return out
end


return row_view

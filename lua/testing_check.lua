--- The check of values against schemas for specs: the part of core/codec/schema.c that plugins rely
-- on, over the tables that lua/schema.lua makes. See testing.lua.
local fakes = require("testing_fakes")

local testing_check = {}

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"
local checkers = {}


local function add(problems, path, kind, message)
  problems[#problems + 1] = { path = path, kind = kind, message = message }
end


local function in_range(schema, number, path, problems, kind)
  if (schema.min and number < schema.min) or (schema.max and number > schema.max) then
    add(problems, path, kind or "range", string.format("must be from %s to %s",
      tostring(schema.min), tostring(schema.max)))
  end
end


function checkers.text(schema, value, path, problems)
  if type(value) ~= "string" then
    return add(problems, path, "type", "must be a text")
  end
  if schema.trim then
    value = value:match("^%s*(.-)%s*$")
  end
  if schema.empty_null and value == "" then
    return fakes.json.null
  end
  in_range(schema, #value, path, problems, "length")
  if schema.enum then
    for _, choice in ipairs(schema.enum) do
      if choice == value then
        return value
      end
    end
    add(problems, path, "enum", "must be one of the known values")
  end
  return value
end


function checkers.number(schema, value, path, problems, is_text)
  local number = is_text and tonumber(value) or value
  if type(number) ~= "number" then
    return add(problems, path, "type", "must be a number")
  end
  in_range(schema, number, path, problems)
  return number
end


function checkers.integer(schema, value, path, problems, is_text)
  local number = checkers.number(schema, value, path, problems, is_text)
  if number and number % 1 ~= 0 then
    add(problems, path, "type", "must be a whole number")
  end
  return number
end


function checkers.boolean(_, value, path, problems, is_text)
  if is_text and (value == "true" or value == "false") then
    return value == "true"
  elseif type(value) ~= "boolean" then
    return add(problems, path, "type", "must be true or false")
  end
  return value
end


function checkers.decimal(schema, value, path, problems)
  local amount = fakes.money.parse(tostring(value))
  if not amount then
    return add(problems, path, "type", "must be an amount")
  elseif schema.min and amount < fakes.money.parse(tostring(schema.min)) then
    add(problems, path, "range", "too small")
  end
  return amount
end


function checkers.duration(_, value, path, problems)
  if type(value) == "number" then
    return value
  end
  local number, unit = tostring(value):match("^(%d+%.?%d*)(%a*)$")
  local factor = ({ [""] = 1, s = 1, ms = 0.001, m = 60, h = 3600, d = 86400 })[unit]
  if not factor then
    return add(problems, path, "type", "must be a duration")
  end
  return tonumber(number) * factor
end


function checkers.uuid(_, value, path, problems)
  if type(value) ~= "string" or not value:find(UUID) then
    return add(problems, path, "format", "must be a UUID")
  end
  return value:lower()
end


function checkers.url(_, value, path, problems)
  if type(value) ~= "string" or not value:find("^https?://[^/@%s]+") then
    return add(problems, path, "format", "must be an http or https URL")
  end
  return value
end


function checkers.time(_, value, path, problems)
  local milliseconds = require("iso_time").parse(value)
  if not milliseconds then
    return add(problems, path, "format", "must be an ISO 8601 time")
  end
  return milliseconds
end


function checkers.list(schema, value, path, problems)
  if type(value) ~= "table" or (next(value) ~= nil and #value == 0) then
    return add(problems, path, "type", "must be a list")
  end
  in_range(schema, #value, path, problems, "length")
  local out = fakes.json.array {}
  for i, item in ipairs(value) do
    out[i] = testing_check.into(schema.of, item, string.format("%s.%d", path, i - 1), problems)
  end
  return out
end


function checkers.map(schema, value, path, problems)
  if type(value) ~= "table" then
    return add(problems, path, "type", "must be an object")
  end
  local out = {}
  for name, item in pairs(value) do
    out[name] = testing_check.into(schema.of, item, path .. "." .. tostring(name), problems)
  end
  return out
end


function checkers.record(schema, value, path, problems, is_text)
  if type(value) ~= "table" then
    return add(problems, path, "type", "must be an object")
  end
  local out = {}
  for name in pairs(value) do
    if not schema.fields[name] then
      add(problems, path .. "." .. tostring(name), "unknown", "is not known")
    end
  end
  for name, field in pairs(schema.fields) do
    local inner = path .. "." .. name
    if value[name] ~= nil then
      out[name] = testing_check.into(field, value[name], inner, problems, is_text)
    elseif field.default ~= nil then
      out[name] = testing_check.into(field, field.default, inner, problems)
    elseif not field.optional then
      add(problems, inner, "missing", "Field required")
    end
  end
  return out
end


function checkers.any(_, value)
  return value
end
checkers.secret, checkers.rate = checkers.any, checkers.any


--- Checks one value and adds what is wrong to problems.
-- @return any the value with defaults
function testing_check.into(schema, value, path, problems, is_text)
  if value == fakes.json.null then
    if not schema.nullable then
      add(problems, path, "type", "must not be null")
    end
    return value
  end
  return checkers[schema.__schema](schema, value, path, problems, is_text)
end


--- Checks a value.
-- @param schema table made by schema.*
-- @param value any
-- @param[opt="value"] path string begins every problem's path
-- @param[opt] is_text boolean numbers come as texts (queries)
-- @return any the value with defaults, or nil and a list of { path, kind, message }
function testing_check.value(schema, value, path, is_text)
  local problems = {}
  local out = testing_check.into(schema, value, path or "value", problems, is_text)
  if #problems > 0 then
    table.sort(problems, function(a, b) return a.path < b.path end)
    return nil, problems
  end
  return out
end


return testing_check

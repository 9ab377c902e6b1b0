--- Schemas of settings, bodies, queries and path parameters.
-- Each constructor takes one table of options and returns a plain table that the host compiles to C
-- (core/script/plugin_schema.c), where the checks run. A mistake in an option is an error at the
-- plugin's own line.
local schema = {}

-- Options that every schema takes.
local COMMON = { about = "string", optional = "boolean", default = "any", nullable = "boolean" }

-- What each kind takes besides: option → type.
local KINDS = {
  text = {
    min = "number", max = "number", pattern = "string", enum = "table", trim = "boolean",
    empty_null = "boolean",
  },
  integer = { min = "number", max = "number" },
  number = { min = "number", max = "number" },
  boolean = {},
  decimal = { min = "amount", max = "amount" },
  rate = { min = "amount", max = "amount" },
  duration = { min = "amount", max = "amount" },
  time = { min = "string", max = "string" },
  uuid = {},
  url = { max = "number" },
  secret = {},
  list = { of = "schema", min = "number", max = "number" },
  map = { of = "schema", min = "number", max = "number" },
  any = {},
}

-- Error levels: 1 the helper, 2 make or record, 3 the constructor, 4 the plugin.
local LEVEL = 4


--- True when the value was made by one of the constructors.
-- @param value any
-- @return boolean
function schema.is(value)
  return type(value) == "table" and type(rawget(value, "__schema")) == "string"
end


local function has_type(value, wanted)
  if wanted == "any" then
    return type(value) ~= "function" and type(value) ~= "thread"
  elseif wanted == "schema" then
    return schema.is(value)
  elseif wanted == "amount" then
    return type(value) == "number" or type(value) == "string"
  end
  return type(value) == wanted
end


local function check_option(kind, name, value)
  local wanted = KINDS[kind][name] or COMMON[name]
  if not wanted then
    error(string.format("schema.%s: unknown option '%s'", kind, tostring(name)), LEVEL)
  end
  if not has_type(value, wanted) then
    local expected = wanted == "amount" and "number or a decimal text" or wanted
    error(string.format("schema.%s: %s must be a %s", kind, name, expected), LEVEL)
  end
end


-- Where the plugin called the constructor: "plugins/x/init.lua:12:".
local function position()
  local _, where = pcall(error, "", LEVEL + 1)
  return type(where) == "string" and where:match("^(.-)%s*$") or ""
end


local function check_enum(kind, list)
  if #list == 0 then
    error(string.format("schema.%s: enum is empty", kind), LEVEL)
  end
  for _, choice in ipairs(list) do
    if type(choice) ~= "string" then
      error(string.format("schema.%s: enum must hold texts", kind), LEVEL)
    end
  end
end


local function make(kind, options)
  if options == nil then
    options = {}
  elseif type(options) ~= "table" or schema.is(options) then
    error(string.format("schema.%s takes a table of options", kind), 3)
  end
  local made = { __schema = kind, at = position() }
  for name, value in pairs(options) do
    check_option(kind, name, value)
    made[name] = value
  end
  if made.enum then
    check_enum(kind, made.enum)
  end
  if KINDS[kind].of and not made.of then
    error(string.format("schema.%s needs of = a schema", kind), 3)
  end
  return made
end


for kind in pairs(KINDS) do
  schema[kind] = function(options)
    local made = make(kind, options) -- no tail call: error levels count frames
    return made
  end
end


local RECORD_OPTIONS = { about = "string", optional = "boolean", nullable = "boolean",
  default = "any" }

local function add_field(fields, name, value)
  if type(name) ~= "string" then
    error("schema.record: a field's name must be a text", LEVEL)
  elseif not schema.is(value) then
    error(string.format("schema.record: %s is no schema", name), LEVEL)
  end
  fields[name] = value
end

local function make_record(options)
  if type(options) ~= "table" or schema.is(options) then
    error("schema.record takes a table of fields", 3)
  end
  local made = { __schema = "record", at = position(), fields = {} }
  for name, value in pairs(options) do
    if schema.is(value) then
      add_field(made.fields, name, value)
    elseif name == "fields" and type(value) == "table" then
      for inner, field in pairs(value) do
        add_field(made.fields, inner, field)
      end
    elseif RECORD_OPTIONS[name] and has_type(value, RECORD_OPTIONS[name]) then
      made[name] = value
    else
      error(string.format("schema.record: %s is no schema", tostring(name)), 3)
    end
  end
  return made
end


--- An object with the given fields; unknown fields are refused.
-- @param options table name → schema; or { fields = { name → schema }, about=, default= }
-- @return table
function schema.record(options)
  local made = make_record(options)
  return made
end


--- The same schema, but null is a value too.
-- @param inner table a schema
-- @return table
function schema.null_or(inner)
  if not schema.is(inner) then
    error("schema.null_or takes a schema", 2)
  end
  local made = {}
  for name, value in pairs(inner) do
    made[name] = value
  end
  made.nullable = true
  return made
end


return schema

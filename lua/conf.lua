--- Flattens what gateway.conf.lua returned to dotted paths for the table of keys. Used by the host
-- only (core/script/confload.c); the checks of keys and values are in C.
local conf = {}

local MAX_DEPTH = 8
local PLUGIN_FIELDS = { name = true, path = true, trusted = true, settings = true }


local function is_list(value)
  local count = 0
  for _ in pairs(value) do
    count = count + 1
  end
  return count > 0 and count == #value
end


local function is_secret(value)
  return type(value) == "table" and type(rawget(value, "__secret")) == "string"
end


-- Lays one table over another: sections are merged, everything else is replaced.
local function overlay(under, over, depth)
  for key, value in pairs(over) do
    local old = under[key]
    if type(value) == "table" and type(old) == "table" and depth < MAX_DEPTH
      and not is_list(value) and not is_list(old) and not is_secret(value) then
      overlay(old, value, depth + 1)
    else
      under[key] = value
    end
  end
end


local Reader = {}
Reader.__index = Reader

function Reader:problem(find, format, ...)
  self.problems[#self.problems + 1] = { what = string.format(format, ...), find = find }
end


local function number_text(value)
  if value == math.floor(value) and math.abs(value) <= 2 ^ 53 then
    return string.format("%.0f", value)
  end
  return string.format("%.14g", value)
end


local function scalar_text(value)
  local kind = type(value)
  if kind == "number" then
    return number_text(value)
  elseif kind == "boolean" then
    return tostring(value)
  elseif kind == "string" then
    return value
  end
  return nil
end


function Reader:add(path, kind, text, secret)
  self.entries[#self.entries + 1] = { path = path, kind = kind, text = text, secret = secret }
end


function Reader:list(path, value)
  local items = {}
  for i, item in ipairs(value) do
    local text = scalar_text(item)
    if not text then
      self:problem(path, "%s[%d] must be a text, not a %s", path, i, type(item))
    elseif text:find(",", 1, true) then
      self:problem(path, "%s[%d] must not hold a comma", path, i)
    else
      items[#items + 1] = text
    end
  end
  self:add(path, "list", table.concat(items, ","))
end


function Reader:walk(prefix, section, depth)
  local names = {}
  for name in pairs(section) do
    names[#names + 1] = name
  end
  table.sort(names, function(a, b) return tostring(a) < tostring(b) end)
  for _, name in ipairs(names) do
    local value = section[name]
    local path = prefix .. tostring(name)
    local text = scalar_text(value)
    if type(name) ~= "string" then
      self:problem(prefix, "%s: a list where keys are expected", prefix == "" and "the file" or
        prefix:sub(1, -2))
    elseif text then
      self:add(path, type(value), text)
    elseif is_secret(value) then
      self:add(path, "secret", value.__value, value.__secret)
    elseif type(value) ~= "table" then
      self:problem(name, "%s cannot be a %s", path, type(value))
    elseif next(value) == nil then
      self:add(path, "empty", "")
    elseif is_list(value) then
      self:list(path, value)
    elseif depth >= MAX_DEPTH then
      self:problem(name, "%s is nested too deep", path)
    else
      self:walk(path .. ".", value, depth + 1)
    end
  end
end


-- References instead of values: secrets become "$NAME".
local function with_references(value, depth)
  if is_secret(value) then
    return "$" .. value.__secret
  elseif type(value) ~= "table" or depth > MAX_DEPTH then
    return value
  end
  local copy = {}
  for key, inner in pairs(value) do
    copy[key] = with_references(inner, depth + 1)
  end
  if next(copy) == nil and getmetatable(value) ~= nil then
    return value
  end
  return copy
end


local function with_values(value, depth)
  if is_secret(value) then
    return value.__value
  elseif type(value) ~= "table" or depth > MAX_DEPTH then
    return value
  end
  local copy = {}
  for key, inner in pairs(value) do
    copy[key] = with_values(inner, depth + 1)
  end
  return copy
end


function Reader:encode(find, what, value)
  local ok, text = pcall(json.encode, value)
  if ok then
    return text
  end
  self:problem(find, "%s: %s", what, tostring(text))
  return nil
end


function Reader:plugin(i, entry)
  if type(entry) == "string" then
    return { name = entry, path = "", trusted = false, settings = "{}" }
  elseif type(entry) ~= "table" or type(entry.name) ~= "string" then
    self:problem("plugins", "plugins[%d] must be a name or { name = …, … }", i)
    return nil
  end
  local settings = {}
  if entry.settings ~= nil and type(entry.settings) ~= "table" then
    self:problem(entry.name, "plugin %s: settings must be a table", entry.name)
    return nil
  end
  for key, value in pairs(entry.settings or {}) do
    settings[key] = value
  end
  for key, value in pairs(entry) do
    if type(key) ~= "string" then
      self:problem(entry.name, "plugin %s: settings need names", entry.name)
    elseif not PLUGIN_FIELDS[key] then
      settings[key] = value
    end
  end
  if entry.path ~= nil and type(entry.path) ~= "string" then
    self:problem(entry.name, "plugin %s: path must be a text", entry.name)
    return nil
  elseif entry.trusted ~= nil and type(entry.trusted) ~= "boolean" then
    self:problem(entry.name, "plugin %s: trusted must be true or false", entry.name)
    return nil
  end
  local text = "{}"
  if next(settings) ~= nil then
    text = self:encode(entry.name, "plugin " .. entry.name, with_references(settings, 0))
  end
  return text and {
    name = entry.name, path = entry.path or "", trusted = entry.trusted == true, settings = text,
  }
end


function Reader:plugins(list)
  local out = {}
  if list == nil then
    return out
  elseif type(list) ~= "table" or (next(list) ~= nil and not is_list(list)) then
    self:problem("plugins", "plugins must be a list")
    return out
  end
  for i, entry in ipairs(list) do
    out[#out + 1] = self:plugin(i, entry)
  end
  return out
end


function Reader:upstreams(list)
  if list == nil or list == "" then
    return ""
  elseif is_secret(list) then
    list = list.__value
  end
  if type(list) == "string" then
    local decoded, why = json.decode(list)
    if type(decoded) ~= "table" or (next(decoded) ~= nil and not is_list(decoded)) then
      self:problem("upstreams", "upstreams must be a JSON array%s", why and ": " .. why or "")
      return ""
    end
    return next(decoded) ~= nil and list or ""
  elseif type(list) ~= "table" or (next(list) ~= nil and not is_list(list)) then
    self:problem("upstreams", "upstreams must be a list of tables, or a JSON array as text")
    return ""
  elseif next(list) == nil then
    return ""
  end
  return self:encode("upstreams", "upstreams", with_values(list, 0)) or ""
end


--- Reads the table of a configuration file.
-- @param given any what the file returned
-- @param overlays table tables of included files, laid over it in order
-- @return table { entries, plugins, upstreams, problems }
function conf.read(given, overlays)
  local reader = setmetatable({ entries = {}, problems = {} }, Reader)
  local result = { entries = reader.entries, problems = reader.problems, plugins = {},
    upstreams = "" }
  if type(given) ~= "table" or is_list(given) then
    reader:problem("return", "the file must return a table of keys")
    return result
  end
  for _, over in ipairs(overlays) do
    overlay(given, over, 0)
  end
  result.plugins = reader:plugins(given.plugins)
  result.upstreams = reader:upstreams(given.upstreams)
  given.plugins, given.upstreams = nil, nil
  reader:walk("", given, 0)
  return result
end


return conf

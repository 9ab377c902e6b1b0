--- The contract of plugin tables: checks what a plugin's init.lua returned and gives a normalised
-- table with all lists present. The host calls it in the scratch state of a load, where all
-- problems are reported, and again in each worker's state.
local plugin = {}

local HOOKS = {
  identify = true, admit = true, select = true, prepare = true, reply = true, body = true,
  delta = true, price = true, error = true, finish = true,
}
local WANTS = { text = true, thinking = true, tool = true }
local METHODS = {
  GET = true, HEAD = true, POST = true, PUT = true, DELETE = true, PATCH = true, OPTIONS = true,
}
local AUTHS = { none = true, key = true, user = true, admin = true }
local PLACES = { worker = true, process = true, cluster = true }
local METRIC_KINDS = { counter = true, gauge = true, histogram = true }

-- Fields of a plugin table and their types.
local FIELDS = {
  name = "string", version = "string", api = "number", about = "string", after = "table",
  before = "table", config = "table", needs = "table", on_error = "string", init = "function",
  close = "function", hooks = "table", wants = "table", routes = "table",
  render_error = "function", tasks = "table", migrations = "string", quirks = "table",
  metrics = "table", console = "table", models = "table",
}
local NEEDS = {
  fetch = true, db = true, ledger = true, secrets = true, keys = true, upstreams = true,
  logs = true, prices = true, process = true,
}
local ROUTE_FIELDS = {
  "method", "path", "handler", "auth", "params", "query", "body", "about", "responses", "max_body",
}
local TASK_FIELDS = { "name", "every", "daily", "on", "run", "timeout" }
local METRIC_FIELDS = { "name", "kind", "help", "labels" }
local MODEL_FIELDS = { "id", "owned_by" }

local MAX_EVERY = 366 * 86400


local function set_of(list)
  local set = {}
  for _, name in ipairs(list) do
    set[name] = true
  end
  return set
end

local ROUTE_SET, TASK_SET = set_of(ROUTE_FIELDS), set_of(TASK_FIELDS)
local METRIC_SET, MODEL_SET = set_of(METRIC_FIELDS), set_of(MODEL_FIELDS)


local function distance(a, b)
  local row = {}
  for j = 0, #b do
    row[j] = j
  end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      local best = math.min(diagonal + cost, row[j] + 1, row[j - 1] + 1)
      diagonal = row[j]
      row[j] = best
    end
  end
  return row[#b]
end


--- The nearest of some names.
-- @param name string
-- @param known table name → anything
-- @return string or nil when nothing is near
function plugin.suggest(name, known)
  local best, best_distance
  if #name > 40 then
    return nil
  end
  for candidate in pairs(known) do
    local steps = distance(name, candidate)
    if steps <= #name / 3 + 1 and steps < #candidate
      and (not best or steps < best_distance or (steps == best_distance and candidate < best)) then
      best, best_distance = candidate, steps
    end
  end
  return best
end


local Check = {}
Check.__index = Check

-- find: a text whose line in init.lua is the place of the problem.
function Check:problem(find, format, ...)
  self.problems[#self.problems + 1] = { what = string.format(format, ...), find = find }
end


function Check:unknown(where, name, known)
  name = tostring(name)
  local near = plugin.suggest(name, known)
  if near then
    self:problem(name, "%s: unknown field '%s' (did you mean '%s'?)", where, name, near)
  else
    self:problem(name, "%s: unknown field '%s'", where, name)
  end
end


local function sorted_keys(map)
  local keys = {}
  for name in pairs(map) do
    keys[#keys + 1] = name
  end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  return keys
end


local function is_list(value)
  if type(value) ~= "table" then
    return false
  end
  local count = 0
  for _ in pairs(value) do
    count = count + 1
  end
  return count == #value
end


local function is_schema(value)
  return type(value) == "table" and type(rawget(value, "__schema")) == "string"
end


-- A list of texts, copied; nil becomes an empty list.
function Check:texts(where, find, value)
  local out = {}
  if value == nil then
    return out
  elseif not is_list(value) then
    self:problem(find, "%s must be a list of texts", where)
    return out
  end
  for i, text in ipairs(value) do
    if type(text) ~= "string" or text == "" then
      self:problem(find, "%s[%d] must be a text", where, i)
    else
      out[#out + 1] = text
    end
  end
  return out
end


function Check:types(given)
  for _, name in ipairs(sorted_keys(given)) do
    local wanted = FIELDS[name]
    if not wanted then
      self:unknown("plugin", name, FIELDS)
    elseif type(given[name]) ~= wanted then
      self:problem(name, "%s must be a %s, not a %s", name, wanted, type(given[name]))
      self.bad[name] = true
    end
  end
end


-- The field when its type is right.
function Check:field(given, name)
  if self.bad[name] then
    return nil
  end
  return given[name]
end


function Check:head(given, out, expected)
  out.name = self:field(given, "name")
  if out.name == nil then
    self:problem("return", "name is missing: name = \"%s\"", expected)
  elseif not out.name:find("^[a-z][a-z0-9_]*$") or #out.name > 40 then
    self:problem("name", "name '%s' must be lower-case letters, digits and _ (at most 40)",
      out.name)
  elseif out.name ~= expected then
    self:problem("name", "name is '%s', but the plugin is configured as '%s'", out.name, expected)
  end
  out.version = self:field(given, "version") or "0"
  out.about = self:field(given, "about") or ""
  if given.api == nil then
    self:problem("return", "api is missing: api = 1")
  elseif given.api ~= 1 then
    self:problem("api", "api = %s is not known; this gateway speaks api = 1", tostring(given.api))
  end
  out.after = self:texts("after", "after", self:field(given, "after"))
  out.before = self:texts("before", "before", self:field(given, "before"))
  out.on_error = self:field(given, "on_error") or "deny"
  if out.on_error ~= "deny" and out.on_error ~= "skip" then
    self:problem("on_error", "on_error must be \"deny\" or \"skip\", not \"%s\"", out.on_error)
  end
  out.init, out.close = self:field(given, "init"), self:field(given, "close")
  out.render_error = self:field(given, "render_error")
  out.migrations = self:field(given, "migrations")
  if out.migrations and (out.migrations:find("^/") or out.migrations:find("..", 1, true)) then
    self:problem("migrations", "migrations must be a folder inside the plugin's own")
  end
  out.console = self:field(given, "console")
  out.config = self:field(given, "config")
  if out.config and (not is_schema(out.config) or out.config.__schema ~= "record") then
    self:problem("config", "config must be a schema.record{…}")
    out.config = nil
  end
end


function Check:access(needs, out, name)
  local value = needs[name]
  if value == nil or value == false then
    return
  elseif value ~= "read" and value ~= "write" then
    self:problem(name, "needs.%s must be \"read\" or \"write\"", name)
  else
    out[name] = value
  end
end


function Check:needs(given)
  local needs, out = self:field(given, "needs") or {}, { secrets = {} }
  for _, name in ipairs(sorted_keys(needs)) do
    if not NEEDS[name] then
      self:unknown("needs", name, NEEDS)
    end
  end
  for _, name in ipairs { "db", "ledger", "process" } do
    local value = needs[name]
    if value ~= nil and type(value) ~= "boolean" then
      self:problem(name, "needs.%s must be true or false", name)
    end
    out[name] = value == true
  end
  for _, name in ipairs { "keys", "upstreams", "logs", "prices" } do
    self:access(needs, out, name)
  end
  if needs.fetch == true then
    out.fetch = true
  elseif needs.fetch then
    out.fetch = self:texts("needs.fetch", "fetch", needs.fetch)
  end
  out.secrets = self:texts("needs.secrets", "secrets", needs.secrets)
  for _, name in ipairs(out.secrets) do
    if not name:find("^[A-Z_][A-Z0-9_]*$") then
      self:problem(name, "needs.secrets: '%s' is no name of a variable", name)
    end
  end
  return out
end


function Check:hooks(given, out)
  local hooks = self:field(given, "hooks") or {}
  out.hooks = {}
  for _, name in ipairs(sorted_keys(hooks)) do
    if not HOOKS[name] then
      local near = plugin.suggest(tostring(name), HOOKS)
      self:problem(tostring(name), "hooks: unknown hook '%s'%s", tostring(name),
        near and " (did you mean '" .. near .. "'?)" or "")
    elseif type(hooks[name]) ~= "function" then
      self:problem(name, "hooks.%s must be a function, not a %s", name, type(hooks[name]))
    else
      out.hooks[name] = hooks[name]
    end
  end
  out.wants = self:texts("wants", "wants", self:field(given, "wants"))
  for _, name in ipairs(out.wants) do
    if not WANTS[name] then
      self:problem("wants", "wants: '%s' is not text, thinking or tool", name)
    end
  end
  if out.hooks.delta and #out.wants == 0 then
    self:problem("delta", "hooks.delta needs wants = {\"text\", …}")
  elseif #out.wants > 0 and not out.hooks.delta then
    self:problem("wants", "wants is for hooks.delta, which is not there")
  end
end


-- The names of the parameters of a path; nil and a reason when the path is malformed.
function plugin.path_parameters(path)
  local names, seen = {}, {}
  if path:sub(1, 1) ~= "/" then
    return nil, "must start with /"
  elseif path:find("//", 1, true) or (#path > 1 and path:sub(-1) == "/") then
    return nil, "has an empty segment"
  elseif #path > 512 then
    return nil, "is too long"
  end
  for segment in path:gmatch("[^/]+") do
    local name = segment:match("^{([a-z_][a-z0-9_]*)}$")
    if name and seen[name] then
      return nil, "names {" .. name .. "} twice"
    elseif name then
      seen[name] = true
      names[#names + 1] = name
    elseif not segment:find("^[%w%-%._~:@%+]+$") then
      return nil, "has the segment '" .. segment
        .. "'; a segment is {name} or letters, digits and -._~:@+"
    end
  end
  return names
end


-- The record of a route's path parameters: declared ones, text for the others.
function Check:params(where, find, route, names)
  local given = route.params
  local fields = {}
  if given ~= nil then
    if type(given) ~= "table" then
      self:problem(find, "%s: params must be a table of schemas", where)
      given = {}
    elseif is_schema(given) then
      given = given.fields or {}
    end
    local known = set_of(names)
    for _, name in ipairs(sorted_keys(given)) do
      if not is_schema(given[name]) then
        self:problem(find, "%s: params.%s must be a schema", where, tostring(name))
      elseif not known[name] then
        self:problem(find, "%s: params.%s is not in the path", where, tostring(name))
      else
        fields[name] = given[name]
      end
    end
  end
  for _, name in ipairs(names) do
    fields[name] = fields[name] or { __schema = "text", at = "", min = 1, max = 256 }
  end
  if #names == 0 then
    return nil
  end
  return { __schema = "record", at = "", fields = fields }
end


function Check:part(where, find, route, name, must_be_record)
  local value = route[name]
  if value == nil then
    return nil
  elseif not is_schema(value) then
    self:problem(find, "%s: %s must be a schema", where, name)
    return nil
  elseif must_be_record and value.__schema ~= "record" then
    self:problem(find, "%s: %s must be a schema.record", where, name)
    return nil
  end
  return value
end


-- The positional fields of a route by name.
function Check:route_fields(where, given)
  local route = {}
  for key, value in pairs(given) do
    local name = key
    if type(key) == "number" then
      name = key <= 3 and ROUTE_FIELDS[key] or nil
    end
    if name == nil then
      self:problem("routes", "%s: { method, path, handler, auth = … } expected", where)
    elseif not ROUTE_SET[name] then
      self:unknown(where, name, ROUTE_SET)
    else
      route[name] = value
    end
  end
  return route
end


function Check:route_calls(where, find, route)
  if type(route.handler) ~= "function" then
    self:problem(find, "%s: handler must be a function, not a %s", where, type(route.handler))
  end
  if route.auth == nil then
    self:problem(find, "%s: auth is missing; a route says \"admin\", \"key\", \"user\", a function"
      .. " or \"none\"", where)
  elseif type(route.auth) ~= "function" and not AUTHS[route.auth] then
    self:problem(find, "%s: auth must be \"admin\", \"key\", \"user\", \"none\" or a function",
      where)
  end
end


function Check:route_data(where, find, route, names)
  if route.about ~= nil and type(route.about) ~= "string" then
    self:problem(find, "%s: about must be a text", where)
    route.about = nil
  end
  local max = route.max_body
  if max ~= nil and (type(max) ~= "number" or max < 0 or max > 1073741824 or max % 1 ~= 0) then
    self:problem(find, "%s: max_body must be whole bytes, at most 1073741824", where)
    route.max_body = nil
  end
  route.params = self:params(where, find, route, names)
  route.query = self:part(where, find, route, "query", true)
  route.body = self:part(where, find, route, "body", false)
  if route.body and (route.method == "GET" or route.method == "HEAD") then
    self:problem(find, "%s: a %s has no body", where, route.method)
  end
  if route.responses ~= nil and type(route.responses) ~= "table" then
    self:problem(find, "%s: responses must be a table: status → schema or text", where)
    route.responses = nil
  end
end


function Check:route(i, given)
  local where = string.format("routes[%d]", i)
  if type(given) ~= "table" then
    self:problem("routes", "%s must be a table", where)
    return nil
  end
  local route = self:route_fields(where, given)
  local find = type(route.path) == "string" and route.path or "routes"
  if type(route.method) ~= "string" or not METHODS[route.method] then
    self:problem(find, "%s: method must be GET, POST, PUT, PATCH, DELETE, HEAD or OPTIONS", where)
    return nil
  elseif type(route.path) ~= "string" then
    self:problem(find, "%s: path must be a text", where)
    return nil
  end
  where = route.method .. " " .. route.path
  local names, why = plugin.path_parameters(route.path)
  if not names then
    self:problem(find, "%s: path %s", where, why)
    return nil
  end
  self:route_calls(where, find, route)
  self:route_data(where, find, route, names)
  return route
end


function Check:entries(given, name, check)
  local list, out = self:field(given, name) or {}, {}
  if not is_list(list) then
    self:problem(name, "%s must be a list", name)
    return out
  end
  for i, entry in ipairs(list) do
    local checked = check(self, i, entry)
    if checked then
      out[#out + 1] = checked
    end
  end
  return out
end


-- Copies a table of named fields, complaining about others.
function Check:named(where, given, known, find)
  if type(given) ~= "table" then
    self:problem(find, "%s must be a table", where)
    return nil
  end
  local out = {}
  for _, key in ipairs(sorted_keys(given)) do
    if known[key] then
      out[key] = given[key]
    else
      self:unknown(where, key, known)
    end
  end
  return out
end


function Check:task(i, given)
  local where = string.format("tasks[%d]", i)
  local task = self:named(where, given, TASK_SET, "tasks")
  if not task then
    return nil
  end
  if type(task.name) ~= "string" or not task.name:find("^[a-z][a-z0-9_]*$") or #task.name > 40 then
    self:problem("tasks", "%s: name must be lower-case letters, digits and _", where)
    return nil
  end
  where = "task " .. task.name
  if type(task.run) ~= "function" then
    self:problem(task.name, "%s: run must be a function", where)
  end
  task.on = task.on or "process"
  if not PLACES[task.on] then
    self:problem(task.name, "%s: on must be \"worker\", \"process\" or \"cluster\"", where)
  end
  local every, daily = task.every, task.daily
  if (every == nil) == (daily == nil) then
    self:problem(task.name, "%s: needs every = seconds or daily = \"HH:MM\"", where)
  elseif every and (type(every) ~= "number" or not (every >= 0.1 and every <= MAX_EVERY)) then
    self:problem(task.name, "%s: every must be seconds from 0.1 to %d", where, MAX_EVERY)
    task.every = nil
  elseif daily then
    local hour, minute = tostring(daily):match("^(%d%d):(%d%d)$")
    if not hour or tonumber(hour) > 23 or tonumber(minute) > 59 then
      self:problem(task.name, "%s: daily must be \"HH:MM\" (UTC)", where)
    else
      task.daily_minute = tonumber(hour) * 60 + tonumber(minute)
    end
  end
  local timeout = task.timeout
  if timeout ~= nil and (type(timeout) ~= "number" or not (timeout > 0 and timeout <= 86400)) then
    self:problem(task.name, "%s: timeout must be seconds, at most 86400", where)
    task.timeout = nil
  end
  if self.task_names[task.name] then
    self:problem(task.name, "%s is there twice", where)
  end
  self.task_names[task.name] = true
  return task
end


function Check:metric(i, given)
  local where = string.format("metrics[%d]", i)
  local metric = self:named(where, given, METRIC_SET, "metrics")
  if not metric then
    return nil
  end
  local name = metric.name
  if type(name) ~= "string" or not name:find("^[a-z][a-z0-9_]*$") or #name > 80 then
    self:problem("metrics", "%s: name must be lower-case letters, digits and _", where)
    return nil
  end
  where = "metric " .. name
  if not METRIC_KINDS[metric.kind] then
    self:problem(name, "%s: kind must be \"counter\", \"gauge\" or \"histogram\"", where)
  elseif metric.kind == "counter" and not name:find("_total$") then
    self:problem(name, "%s: a counter's name ends in _total", where)
  end
  if metric.help ~= nil and type(metric.help) ~= "string" then
    self:problem(name, "%s: help must be a text", where)
    metric.help = nil
  end
  metric.labels = self:texts(where .. ": labels", name, metric.labels)
  for _, label in ipairs(metric.labels) do
    if not label:find("^[a-z_][a-z0-9_]*$") or label:find("^__") then
      self:problem(name, "%s: the label '%s' must be lower-case letters, digits and _", where,
        label)
    end
  end
  if #metric.labels > 8 then
    self:problem(name, "%s: at most 8 labels", where)
  end
  if self.metric_names[name] then
    self:problem(name, "%s is there twice", where)
  end
  self.metric_names[name] = true
  return metric
end


function Check:model(i, given)
  local where = string.format("models[%d]", i)
  local model = self:named(where, given, MODEL_SET, "models")
  if not model then
    return nil
  end
  if type(model.id) ~= "string" or model.id == "" or #model.id > 256 then
    self:problem("models", "%s: id must be a text", where)
    return nil
  end
  model.owned_by = type(model.owned_by) == "string" and model.owned_by or "moongate"
  return model
end


--- Checks a plugin table.
-- @param given any what init.lua returned
-- @param expected string the configured name
-- @return table normalised; nil when it is no table at all
-- @return table list of { what=, find= }
function plugin.check(given, expected)
  local check = setmetatable(
    { problems = {}, bad = {}, task_names = {}, metric_names = {} }, Check)
  if type(given) ~= "table" then
    check:problem("return", "init.lua must return the plugin's table, not a %s", type(given))
    return nil, check.problems
  end
  local out = {}
  check:types(given)
  check:head(given, out, expected)
  out.needs = check:needs(given)
  check:hooks(given, out)
  out.routes = check:entries(given, "routes", check.route)
  out.tasks = check:entries(given, "tasks", check.task)
  out.metrics = check:entries(given, "metrics", check.metric)
  out.models = check:entries(given, "models", check.model)
  out.quirks = check:field(given, "quirks") or {}
  return out, check.problems
end


return plugin

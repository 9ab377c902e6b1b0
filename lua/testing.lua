--- Stand-ins for plugin specs: the sandbox, `gw`, `ctx`, the call of a route. They behave as the
-- host does where a plugin can tell (unknown fields raise, schemas are checked, the clock moves
-- only when somebody sleeps). For specs under plain LuaJIT; no plugin can load it in the host.
--
--   local testing = require("testing")
--   local plugin = testing.load("demo")
--   local gw = testing.gw { conf = { log_retention_days = 7 } }
--   plugin.init(gw, testing.config(plugin, {}))
--   local status, body = testing.call(plugin, gw, "GET", "/healthz")
local check = require("testing_check")
local fakes = require("testing_fakes")
local contract = require("plugin")

local testing = {
  ctx = fakes.ctx,
  gw = fakes.gw,
  money = fakes.money,
  json = fakes.json,
  check = check.value,
}

-- What a plugin's chunk sees of Lua (core/script/sandbox.c).
local BASE = {
  "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget",
  "rawset", "select", "setmetatable", "tonumber", "tostring", "type", "unpack", "xpcall",
}


local function read_only_globals(environment)
  return setmetatable(environment, {
    __index = function(_, name)
      error(string.format("undeclared global '%s'", tostring(name)), 2)
    end,
    __newindex = function(_, name)
      error(string.format("assignment to undeclared global '%s'", tostring(name)), 2)
    end,
  })
end


local function run_file(path, environment, ...)
  local chunk = assert(loadfile(path))
  return setfenv(chunk, environment)(...)
end


local function module_path(plugin_name, name)
  local own = name:match("^%./([%w_]+)$") or name:match("^" .. plugin_name .. "%.([%w_]+)$")
  return own and string.format("plugins/%s/%s.lua", plugin_name, own)
    or string.format("lua/%s.lua", name)
end


--- The environment of a plugin's chunk.
-- @param plugin_name string
-- @return table
function testing.sandbox(plugin_name)
  local environment, loaded = {}, {}
  for _, name in ipairs(BASE) do
    environment[name] = _G[name]
  end
  for _, name in ipairs { "string", "table", "math", "bit" } do
    environment[name] = _G[name]
  end
  environment.os = { time = os.time, date = os.date, clock = os.clock }
  environment.schema, environment.money = require("schema"), fakes.money
  environment.json, environment.log = fakes.json, fakes.logger({})
  environment.require = function(name)
    if loaded[name] == nil then
      loaded[name] = run_file(module_path(plugin_name, name), environment, name)
    end
    return loaded[name]
  end
  return read_only_globals(environment)
end


--- Loads a plugin as the host does and checks its table against the contract.
-- @param name string folder below plugins/
-- @return table the plugin, with all lists present
function testing.load(name)
  local given = run_file(string.format("plugins/%s/init.lua", name), testing.sandbox(name))
  local plugin, problems = contract.check(given, name)
  if #problems > 0 then
    error(string.format("plugins/%s/init.lua: %s", name, problems[1].what), 2)
  end
  return plugin
end


--- A plugin's settings with defaults filled in.
-- @param plugin table from testing.load
-- @param settings table as in gateway.conf.lua
-- @return table or nil and the list of problems
function testing.config(plugin, settings)
  if not plugin.config then
    return {}
  end
  return check.value(plugin.config, settings or {}, "config")
end


-- The route and the values of its {parameters}.
local function find_route(plugin, method, path)
  for _, route in ipairs(plugin.routes) do
    local names = contract.path_parameters(route.path)
    local pattern = route.path:gsub("[%-%.%+]", "%%%0"):gsub("{[%w_]+}", "([^/]+)")
    local found = { path:match("^" .. pattern .. "$") }
    if route.method == method and #found > 0 then
      local params = {}
      for i, name in ipairs(names) do
        params[name] = found[i]:gsub("%%(%x%x)", function(hex)
          return string.char(tonumber(hex, 16))
        end)
      end
      return route, params
    end
  end
  error(string.format("no route %s %s", method, path), 3)
end


local function render(plugin, err)
  err.details = err.details or {}
  if plugin.render_error then
    return plugin.render_error(err)
  end
  return err.status, { error = { code = err.code, message = err.message, details = err.details } }
end


-- principal, or nil and the error.
local function authorise(route, gw, conf, request)
  if type(route.auth) == "function" then
    local principal, status, code, message = route.auth(request, gw, conf)
    if principal then
      return principal
    end
    return nil, { status = status or 401, code = code or "unauthorized", message = message or "" }
  end
  local wanted = request.principal or (route.auth == "none" and { kind = "none" })
  if not wanted then
    local code = route.auth == "admin" and "unauthorized" or "invalid_api_key"
    return nil, { status = 401, code = code, message = "Authentication is required." }
  end
  return wanted
end


local function take(request, part, route, problems)
  local declared = route[part]
  if not declared then
    return
  end
  local prefix = part == "params" and "path" or part
  local value, found = check.value(declared, request[part] or {}, prefix, part ~= "body")
  request[part] = value
  for _, problem in ipairs(found or {}) do
    problems[#problems + 1] = problem
  end
end


--- Calls a route as the host does: authorises, checks the input, runs the handler.
-- @param plugin table from testing.load
-- @param gw table from testing.gw
-- @param method string
-- @param path string
-- @param[opt] request table { query, body, headers, client_ip, principal, credential, is_admin,
--   conf };
--   `principal = false`: without a credential (routes with a fixed auth otherwise get one)
-- @return number, table or string, table status, body, headers
function testing.call(plugin, gw, method, path, request)
  local route, params = find_route(plugin, method, path)
  local given = {}
  for name, value in pairs(request or {}) do
    given[name] = value
  end
  if given.principal == nil and type(route.auth) == "string" and route.auth ~= "none" then
    given.principal = { kind = route.auth }
  end
  given.method, given.path, given.params, given.request_id = method, path, params, "req-1"
  given.headers, given.client_ip = given.headers or {}, given.client_ip or "127.0.0.1"
  local conf = given.conf or testing.config(plugin, {})
  local principal, refusal = authorise(route, gw, conf, given)
  if not principal then
    return render(plugin, refusal)
  end
  given.principal, given.credential, given.conf = principal, nil, nil
  local problems = {}
  for _, part in ipairs { "params", "query", "body" } do
    take(given, part, route, problems)
  end
  if #problems > 0 then
    return render(plugin, { status = 422, code = "validation_error",
      message = "The request is not valid.", details = problems })
  end
  return route.handler(given, gw, conf)
end


return testing

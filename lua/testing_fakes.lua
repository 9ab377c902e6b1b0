--- Fake `gw`, `ctx`, `money` and `json` for plugin specs; see testing.lua.
local testing_fakes = {}

-- ---- json

local null = setmetatable({}, { __tostring = function() return "null" end })
local ARRAY = { __is_array = true }
testing_fakes.json = {
  null = null,
  array = function(list) return setmetatable(list or {}, ARRAY) end,
}

function testing_fakes.json.is_array(value)
  return getmetatable(value) == ARRAY
end

function testing_fakes.json.encode(value)
  return require("dkjson").encode(value)
end

function testing_fakes.json.decode(text)
  local value, _, why = require("dkjson").decode(text, 1, null, nil, nil)
  if value == nil then
    return nil, why
  end
  return value
end


-- ---- money: nano-USD, exact up to 2^53

local MONEY = {}
MONEY.__index = MONEY
MONEY.__add = function(a, b) return setmetatable({ nano = a.nano + b.nano }, MONEY) end
MONEY.__sub = function(a, b) return setmetatable({ nano = a.nano - b.nano }, MONEY) end
MONEY.__eq = function(a, b) return a.nano == b.nano end
MONEY.__lt = function(a, b) return a.nano < b.nano end
MONEY.__le = function(a, b) return a.nano <= b.nano end
MONEY.__tostring = function(amount)
  local sign = amount.nano < 0 and "-" or ""
  local whole = string.format("%010.0f", math.abs(amount.nano))
  local text = whole:sub(1, -10) .. "." .. whole:sub(-9)
  return sign .. text:gsub("0+$", ""):gsub("%.$", "")
end

local money = {}
testing_fakes.money = money

function money.nano(nano)
  return setmetatable({ nano = tonumber(nano) }, MONEY)
end

function money.parse(text)
  local sign, whole, rest = tostring(text):match("^(-?)(%d+)%.?(%d*)$")
  if not whole or #rest > 9 then
    return nil, "not an amount"
  end
  local nano = tonumber(whole) * 1e9 + tonumber((rest .. "000000000"):sub(1, 9))
  return money.nano(sign == "-" and -nano or nano)
end

function money.usd(text)
  return assert(money.parse(text))
end

function money.zero()
  return money.nano(0)
end

function money.is(value)
  return getmetatable(value) == MONEY
end

function money.nano_text(amount)
  return string.format("%.0f", amount.nano)
end


-- ---- log

--- A logger that keeps its lines: { level=, event=, fields= }.
function testing_fakes.logger(lines)
  local logger = {}
  for _, level in ipairs { "debug", "info", "warn", "error" } do
    logger[level] = function(event, fields)
      lines[#lines + 1] = { level = level, event = event, fields = fields }
    end
  end
  return logger
end


-- ---- gw

local function strict(what, fields)
  return setmetatable(fields, {
    __index = function(_, name)
      error(string.format("%s has no '%s' (give it to testing.gw)", what, tostring(name)), 2)
    end,
  })
end


local function with_clock(gw)
  gw.now_ms = function() return gw.clock_ms end
  gw.boot_ms = gw.now_ms
  gw.now = function() return gw.clock_ms / 1000 end
  gw.sleep = function(seconds)
    gw.slept[#gw.slept + 1] = seconds
    gw.clock_ms = gw.clock_ms + seconds * 1000
  end
end


--- A gw with a clock of its own. What the spec does not give raises when it is used.
-- @param[opt] given table parts to put in (keys, upstreams, logs, process, …) and
--   conf = { path → value }, clock_ms, random = list of numbers in [0, 1)
-- @return table with the records slept, logged, spawned
function testing_fakes.gw(given)
  given = given or {}
  local gw = {
    plugin = "spec", worker = 0, version = "0.0.0", generation = 1,
    clock_ms = given.clock_ms or 1763665200000, -- 2025-11-20T19:00:00Z
    slept = {}, logged = {}, spawned = {}, json = testing_fakes.json,
  }
  with_clock(gw)
  gw.log = testing_fakes.logger(gw.logged)
  gw.spawn = function(fn)
    gw.spawned[#gw.spawned + 1] = fn
    fn()
  end
  local conf, numbers, used = given.conf or {}, given.random or { 0.5 }, 0
  gw.conf = function(path) return conf[path] end
  gw.random_u32 = function()
    used = used % #numbers + 1
    return math.floor(numbers[used] * 4294967296)
  end
  gw.secret = function(name) return (given.secrets or {})[name] end
  for name, value in pairs(given) do
    if name ~= "conf" and name ~= "random" and name ~= "secrets" then
      gw[name] = type(value) == "table" and getmetatable(value) == nil
        and name ~= "slept" and strict("gw." .. name, value) or value
    end
  end
  return strict("gw", gw)
end


-- ---- ctx

local FIELDS = {
  "id", "request_id", "method", "path", "query", "headers", "client_ip", "dialect", "op", "model",
  "is_stream", "max_output", "is_plugin_route", "started_ms", "attempt", "tried", "can_retry",
  "candidates", "key", "user", "upstream", "usage", "cost", "status", "error", "finish_reason",
  "ttft_ms", "duration_ms", "flags", "vars", "gw", "body_size", "outgoing", "identity",
}
local KNOWN = { done = true, request = true }
for _, name in ipairs(FIELDS) do
  KNOWN[name] = true
end

local methods = {}

function methods:deny(status, code, message, options)
  self.done.deny = { status = status, code = code, message = message, options = options or {} }
end

function methods:respond(answer)
  self.done.respond = answer
end

function methods:identify(view)
  self.done.identify = view
end

function methods:flag(name)
  self.flags[#self.flags + 1] = name
end

function methods:log(level, event, fields)
  self.done.logged[#self.done.logged + 1] = { level = level, event = event, fields = fields }
end

function methods:json()
  if self.request == nil then
    return nil, "no body"
  end
  return self.request
end

--- Keeps what the answer's function emits in done.events.
function methods:stream(answer)
  local events = {}
  self.done.events = events
  self.done.run = function()
    answer(function(event)
      local last = events[#events]
      assert(not (last and last.kind == "finish"), "emit: nothing may follow the finish")
      events[#events + 1] = event
    end)
    return events
  end
end


local CTX = {
  __index = function(_, name)
    if methods[name] then
      return methods[name]
    elseif KNOWN[name] then
      return nil
    end
    error(string.format("ctx has no field '%s'", tostring(name)), 2)
  end,
  __newindex = function(_, name)
    error(string.format("ctx is read only (field '%s')", tostring(name)), 2)
  end,
}


--- A ctx of a chat call; `done` keeps what the hook did (deny, respond, identify, events, logged),
-- `request` is the decoded body.
-- @param[opt] given table fields that differ
-- @return table
function testing_fakes.ctx(given)
  local ctx = {
    id = "01890000-0000-7000-8000-000000000000", request_id = "req-1", method = "POST",
    path = "/v1/chat/completions", headers = {}, client_ip = "127.0.0.1", dialect = "openai",
    op = "chat", model = "model-x", attempt = 1, tried = {}, can_retry = true,
    candidates = {}, status = 0, flags = {}, vars = {}, done = { logged = {} }, body_size = 0,
  }
  for name, value in pairs(given or {}) do
    assert(KNOWN[name], "testing.ctx: unknown field " .. tostring(name))
    ctx[name] = value
  end
  return setmetatable(ctx, CTX)
end


return testing_fakes

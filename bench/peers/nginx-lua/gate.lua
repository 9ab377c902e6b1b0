-- The Lua phases of the peer "nginx with Lua": as much as a small gateway needs, written for speed.
-- luacheck: globals ngx
local cjson = require("cjson.safe")

local gate = {}

local keys = ngx.shared.keys
local rates = ngx.shared.rates
local tokens = ngx.shared.tokens
local find, match, sub = string.find, string.match, string.sub

local LIMIT_PER_MINUTE = 1e9


function gate.load_keys(key)
  for number = 1, 1000 do
    keys:set("sk-other-" .. number, number)
  end
  keys:set(key, 1001)
end


function gate.admit()
  local bearer = ngx.var.http_authorization
  local key_id = bearer and keys:get(sub(bearer, 8))
  if not key_id then
    return ngx.exit(401)
  end
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  local call = body and cjson.decode(body)
  if not call or type(call.model) ~= "string" then
    return ngx.exit(400)
  end
  local minute = math.floor(ngx.time() / 60)
  local count = rates:incr(key_id .. ":" .. minute, 1, 0, 120)
  if count > LIMIT_PER_MINUTE then
    return ngx.exit(429)
  end
  local ctx = ngx.ctx
  ctx.key_id = key_id
  ctx.model = call.model
end


function gate.see_answer()
  local chunk = ngx.arg[1]
  if chunk == "" then
    return
  end
  local ctx = ngx.ctx
  local at = find(chunk, '"usage":{', 1, true)
  if at then
    ctx.prompt = tonumber(match(chunk, '"prompt_tokens":(%d+)', at)) or ctx.prompt
    ctx.completion = tonumber(match(chunk, '"completion_tokens":(%d+)', at)) or ctx.completion
  end
end


function gate.settle()
  local ctx = ngx.ctx
  if ctx.key_id then
    local total = (ctx.prompt or 0) + (ctx.completion or 0)
    tokens:incr(ctx.key_id .. ":" .. ctx.model, total, 0)
  end
end

return gate

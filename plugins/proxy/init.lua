--- What the second mount of the model routes (PROXY_PREFIX) offers beside them.
local util = require("util")

local gw


local function authorise(req)
  if not req.credential then
    return nil, 401, "missing_api_key", "Authorization header required"
  end
  local key = gw.keys.find(req.credential)
  if not key then
    return nil, 401, "invalid_api_key", "API key not found or inactive"
  end
  return { kind = "key", key = key, user_id = key.user_id }
end


-- A key without a list may use all.
local function may_use(key, upstream_id)
  return not key.upstream_ids or util.contains(key.upstream_ids, upstream_id)
end


local function list_upstreams(req)
  local list = json.array {}
  for _, view in ipairs(gw.upstreams.all()) do
    if may_use(req.principal.key, view.id) then
      list[#list + 1] = {
        name = view.name,
        provider = view.provider,
        is_default = view.is_default == true,
      }
    end
  end
  return 200, { upstreams = list }
end


local function render_error(err)
  return err.status, { detail = { error = err.code, message = err.message } }
end


local ABOUT = "Upstreams that the caller's key may name in X-Upstream-Name."

return {
  name = "proxy",
  version = "1.0.0",
  api = 1,
  about = "Lists at PROXY_PREFIX/v1/upstreams the upstreams that a key may use.",
  needs = { keys = "read", upstreams = "read" },
  render_error = render_error,

  init = function(the_gw)
    gw = the_gw
  end,

  routes = {
    { "GET", "/v1/upstreams", list_upstreams, auth = authorise, about = ABOUT },
    { "GET", "/proxy/v1/upstreams", list_upstreams, auth = authorise, about = ABOUT },
  },
}

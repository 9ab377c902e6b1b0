--- Prometheus metrics. Free for programs on this machine, for others with the admin token.
local gw

-- A proxy on this machine speaks for somebody else: then being local proves nothing.
local FORWARDING = { "x-forwarded-for", "forwarded", "x-real-ip" }
local CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


local function is_loopback(address)
  return address == "::1" or address:find("^127%.") ~= nil or address:find("^::ffff:127%.") ~= nil
end


local function is_local(req)
  for _, name in ipairs(FORWARDING) do
    if req.headers[name] then
      return false
    end
  end
  return is_loopback(req.client_ip)
end


local function authorise(req)
  if is_local(req) then
    return { kind = "none" }
  end
  if req.is_admin then
    return { kind = "admin" }
  end
  return nil, 401, "unauthorized", "Metrics need Authorization: Bearer <admin token>."
end


local function show_metrics()
  return 200, gw.process.metrics(), { ["content-type"] = CONTENT_TYPE }
end


return {
  name = "metrics",
  version = "1.0.0",
  api = 1,
  about = "Shows the counters of the process in Prometheus' text format at /metrics.",
  needs = { process = true },

  init = function(the_gw)
    gw = the_gw
  end,

  routes = {
    { "GET", "/metrics", show_metrics, auth = authorise,
      about = "Prometheus text; without a credential only from this machine." },
  },
}

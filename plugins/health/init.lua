--- Probes for load balancers and supervisors: is the process alive, is it ready for calls.
local gw


local function tell_alive()
  return 200, { status = "ok" }
end


local function tell_ready()
  local state = gw.process.ready()
  return state.ready and 200 or 503, {
    status = state.ready and "ready" or "unavailable",
    reasons = json.array(state.reasons or {}),
  }
end


return {
  name = "health",
  version = "1.0.0",
  api = 1,
  about = "Answers /healthz (alive) and /readyz (not draining, database fine, a model to serve).",
  needs = { process = true },

  init = function(the_gw)
    gw = the_gw
  end,

  routes = {
    { "GET", "/healthz", tell_alive, auth = "none", about = "200 while the process runs." },
    { "GET", "/health", tell_alive, auth = "none", about = "The same as /healthz." },
    { "GET", "/api/health", tell_alive, auth = "none", about = "The same as /healthz." },
    { "GET", "/readyz", tell_ready, auth = "none",
      about = "200 when calls can be served, else 503 with reasons.",
      responses = { [200] = "Ready.", [503] = "Not ready; `reasons` says why." } },
  },
}

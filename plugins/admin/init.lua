--- Administration of keys, upstreams and logs by REST (surface B of the docs).
local detail_error = require("detail_error")


local function all_routes(...)
  local routes = {}
  for _, part in ipairs { ... } do
    for _, route in ipairs(part.routes) do
      routes[#routes + 1] = route
    end
  end
  return routes
end


return {
  name = "admin",
  version = "1.0.0",
  api = 1,
  about = "REST routes below /admin for keys, upstreams, the request log and the process.",
  needs = { keys = "write", upstreams = "write", logs = "read", process = true },
  render_error = detail_error.render,
  routes = all_routes(
    require("./keys"), require("./upstreams"), require("./logs"), require("./process")),
}

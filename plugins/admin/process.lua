--- /admin/info, /admin/plugins, /admin/reload: the process itself.
local process = {}


local function show_info(_, gw)
  return 200, gw.process.info()
end


local function list_plugins(_, gw)
  local plugins = json.array(gw.plugins())
  for _, plugin in ipairs(plugins) do -- empty lists must not look like objects
    plugin.routes, plugin.hooks = json.array(plugin.routes), json.array(plugin.hooks)
  end
  return 200, { plugins = plugins }
end


local function problem_lines(text)
  local lines = json.array {}
  for line in text:gmatch("[^\n]+") do
    lines[#lines + 1] = line
  end
  return lines
end


-- The running plugins stay when the new ones have a problem.
local function reload(_, gw)
  local done, err = gw.process.reload()
  if done then
    return 200, { reloaded = true }
  end
  local text = type(err) == "table" and err.message or tostring(err)
  return 400, { detail = {
    error = "reload_failed",
    message = "The plugins were not reloaded; the running ones stay.",
    problems = problem_lines(text),
  } }
end


process.routes = {
  { "GET", "/admin/info", show_info, auth = "admin", about = "Version, uptime, queues, memory." },
  { "GET", "/admin/plugins", list_plugins, auth = "admin",
    about = "Plugins with their routes, hooks and settings." },
  { "POST", "/admin/reload", reload, auth = "admin",
    about = "Loads plugins anew; all or nothing.",
    responses = { [200] = "The new plugins serve.", [400] = "`problems` says what is wrong." } },
}

return process

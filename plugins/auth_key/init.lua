--- Identifies callers by their API key. Place it last among the plugins that identify: it refuses
-- whoever none of them knew.
local gw

-- One text for every reason, so that nobody learns which keys exist.
local MESSAGE = "Incorrect API key provided. Send a valid key as 'Authorization: Bearer KEY' or "
  .. "'x-api-key: KEY'."

-- What callers of the second mount expect instead.
local DETAILS = {
  missing = { error = "missing_api_key", message = "Authorization header required" },
  other = { error = "invalid_api_key", message = "API key not found or inactive" },
}


local function is_below_prefix(path, prefix)
  return prefix ~= nil and prefix ~= "" and path:sub(1, #prefix + 1) == prefix .. "/"
end


local function refuse(ctx, reason)
  if is_below_prefix(ctx.path, gw.conf("proxy_prefix")) then
    ctx:respond {
      status = 401,
      json = { detail = DETAILS[reason] or DETAILS.other },
      headers = { ["x-should-retry"] = "false" },
    }
  else
    ctx:deny(401, "invalid_api_key", MESSAGE, { should_retry = false })
  end
end


local function identify_by_key(ctx)
  local key, reason = gw.keys.authenticate(ctx)
  if key then
    return true
  elseif reason == "disabled" then -- a known key: the caller may learn what is wrong
    return ctx:deny(403, "user_disabled", "The user of this API key is disabled.",
      { should_retry = false })
  end
  return refuse(ctx, reason)
end


return {
  name = "auth_key",
  version = "1.0.0",
  api = 1,
  about = "Identifies callers by their API key (Authorization: Bearer, x-api-key or api-key).",
  needs = { keys = "read" },
  on_error = "deny",

  init = function(the_gw)
    gw = the_gw
  end,

  hooks = { identify = identify_by_key },
}

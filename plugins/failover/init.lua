--- Tries the next candidate when an upstream fails before anything reached the client.

-- Failures of the connection: another upstream may be well.
local BROKEN = {
  connect = true, dns = true, tls = true, timeout = true, reset = true, protocol = true,
}

local retried = {} -- set of conf.statuses


local function remember_statuses(_, conf)
  for _, status in ipairs(conf.statuses) do
    retried[status] = true
  end
end


local function is_worth_another(ctx, failure, conf)
  if BROKEN[failure.kind] then
    return true
  end
  -- An error inside a 200 stream carries the status that it means.
  local status = failure.kind == "status" and ctx.upstream and ctx.upstream.status
    or failure.status or 0
  return (conf.server_errors and status >= 500) or retried[status] == true
end


local function retry_elsewhere(ctx, conf)
  if not ctx.can_retry or ctx.attempt >= conf.max_attempts then
    return nil
  end
  local failure = ctx.error -- without a kind it is that of an earlier attempt
  if not failure or not failure.kind or not is_worth_another(ctx, failure, conf) then
    return nil
  end
  ctx:flag("failover")
  return "retry"
end


return {
  name = "failover",
  version = "1.0.0",
  api = 1,
  about = "Tries the next upstream after connection errors, timeouts, 429, 5xx and errors at the "
    .. "start of a stream.",
  on_error = "skip",

  config = schema.record {
    max_attempts = schema.integer { default = 4, min = 1, max = 16,
      about = "attempts for one call, the first included; the global max_attempts also holds" },
    statuses = schema.list {
      of = schema.integer { min = 300, max = 599 },
      default = { 401, 402, 403, 408, 429 },
      about = "upstream statuses below 500 that are tried elsewhere (401 to 403: the upstream "
        .. "refused our own key)",
    },
    server_errors = schema.boolean { default = true,
      about = "every status from 500 is tried elsewhere" },
  },

  init = remember_statuses,

  hooks = { reply = retry_elsewhere },
}

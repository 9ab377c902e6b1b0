--- Keeps the request log short: drops rows that are older than the retention, once a day.
local DAY_MS = 86400000


local function prune_old_logs(gw, conf)
  local days = conf.retention_days or gw.conf("log_retention_days")
  local result, err = gw.logs.prune { before_ms = gw.now_ms() - days * DAY_MS }
  if not result then
    gw.log.error("request_log_prune_failed", { code = err.code, message = err.message })
    return
  end
  gw.log.info(string.format("Cleaned up %d old request logs", result.deleted),
    { deleted = result.deleted, retention_days = days })
end


return {
  name = "request_log",
  version = "1.0.0",
  api = 1,
  about = "Deletes old rows of the request log every day at 02:00 UTC.",
  needs = { logs = "write" },

  config = schema.record {
    retention_days = schema.integer { optional = true, min = 1, max = 36500,
      about = "days that rows are kept; default: log_retention_days of the configuration" },
  },

  tasks = {
    { name = "prune", daily = "02:00", on = "cluster", timeout = 3600, run = prune_old_logs },
  },
}

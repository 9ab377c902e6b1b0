-- Moongate under the bench, accounting off as far as that exists: no plugin of prices or of the
-- request log, durability "process" (the log rows are still journalled), no access log.
-- luacheck: read_globals env secret
return {
  listen = { host = "127.0.0.1", port = env("PORT") },
  workers = 1,
  database_url = env("DATABASE_URL"),
  encryption_key = secret("ENCRYPTION_KEY"),
  secret_key = secret("SECRET_KEY"),
  admin_token = secret("ADMIN_TOKEN"),
  durability = "process",
  log = { access = false },
  limits = { connections_per_ip = 60000 },
  plugins = {
    "health",
    "auth_key",
    "select_weighted",
    "failover",
    "provider_openai",
    "provider_anthropic",
    "provider_generic",
    "admin",
  },
}

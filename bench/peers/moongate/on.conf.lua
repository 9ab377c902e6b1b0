-- Moongate under the bench, accounting on: the shipped plugins and defaults, durability "power" (the
-- default), one worker. The cap per address is lifted, because all load comes from one, and there is
-- no access line per call, as the peers write none.
-- luacheck: read_globals env secret
return {
  listen = { host = "127.0.0.1", port = env("PORT") },
  workers = 1,
  database_url = env("DATABASE_URL"),
  encryption_key = secret("ENCRYPTION_KEY"),
  secret_key = secret("SECRET_KEY"),
  admin_token = secret("ADMIN_TOKEN"),
  durability = "power",
  log = { access = false },
  limits = { connections_per_ip = 60000 },
  plugins = {
    "health",
    "metrics",
    "auth_key",
    "demo",
    "select_weighted",
    "failover",
    "provider_openai",
    "provider_anthropic",
    "provider_generic",
    "prices",
    "request_log",
    "admin",
    "proxy",
  },
}

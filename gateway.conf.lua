-- Moongate's configuration, and its default: what stands here is what runs when nothing else is
-- said. The file returns a plain table; logic belongs in plugins.
--
--   env(name[, default])  a variable of the environment, or of .env beside this file (the
--                         environment wins; an empty one counts as unset)
--   secret(name)          the same for secrets: masked in `config dump`, a handle for plugins
--   file(path)            the text of a file, without its last line end
--   include(pattern)      lays the tables of further files over this one, by name
--
-- Relative paths start in this file's folder. Unknown keys are errors. Times are seconds. All keys
-- with defaults, limits and where each value comes from: `moongate config dump`. Keys that are
-- commented out here show their default.
return {
  listen = {
    host = env("HOST", "127.0.0.1"),
    port = env("PORT", 8000),
    -- A second listener, host:port; when set, /metrics and the details of /readyz are there only.
    admin = env("ADMIN_LISTEN"),
    -- PEM files, read again on reload; with them the port speaks HTTPS only (TLS 1.2 and 1.3).
    tls_cert = env("TLS_CERT"), -- the certificate, then those it was signed with
    tls_key = env("TLS_KEY"),
    admin_tls = env("ADMIN_TLS", false), -- the second listener too
    -- control = "data/control.sock",  -- of the command line verbs
  },
  workers = env("WORKERS"), -- default: one per core
  app_name = env("APP_NAME", "Moongate"),
  public_url = env("PUBLIC_URL"), -- the own origin as clients see it
  trusted_proxies = env("TRUSTED_PROXIES"), -- addresses or CIDRs, comma list or { "…" }
  cors_origins = env("CORS_ORIGINS"),

  -- sqlite:///relative, sqlite:////absolute
  database_url = env("DATABASE_URL", "sqlite:///data/moongate.db"),
  redis_url = env("REDIS_URL"),
  -- durability = "power",  -- "process" survives kill -9 but not a power cut, and is faster
  log_retention_days = env("LOG_RETENTION_DAYS", 90),

  -- Required: one of the encryption keys, and secret_key. `make run` makes them on its first run.
  encryption_key = secret("ENCRYPTION_KEY"),
  encryption_key_file = env("ENCRYPTION_KEY_FILE"),
  plugin_api_encryption_key = secret("PLUGIN_API_ENCRYPTION_KEY"), -- these two only decrypt
  token_encrypt_key = secret("TOKEN_ENCRYPT_KEY"),
  secret_key = secret("SECRET_KEY") or secret("JWT_SECRET_KEY"),
  -- The static admin bearer; unset closes that way in.
  admin_token = secret("ADMIN_TOKEN"),
  -- The first admin, made when there is none.
  admin = {
    username = env("ADMIN_USERNAME"),
    password = secret("ADMIN_PASSWORD"),
    email = env("ADMIN_EMAIL"),
  },

  -- Imported while the database has no upstream: a JSON array in UPSTREAMS, or a list such as
  --   { { name = "main", provider = "openai", base_url = "https://api.openai.com",
  --       api_key = secret("OPENAI_API_KEY"), models = { "gpt-*" } } }
  upstreams = secret("UPSTREAMS"),
  -- Short form of one default upstream that speaks the OpenAI format.
  upstream = {
    url = env("UPSTREAM_URL"),
    api_key = secret("UPSTREAM_API_KEY"),
  },
  proxy_prefix = env("PROXY_PREFIX", "/proxy"),
  -- Private hosts or CIDRs that upstream URLs of users may reach all the same.
  allowed_private_hosts = env("ALLOWED_PRIVATE_HOSTS"),
  -- max_attempts = 4,      -- upstreams tried for one call
  -- disconnect = "cancel", -- or "drain": what becomes of the upstream call when the client leaves
  -- hold_head = 15,        -- a stream's head waits this long for the first event
  -- keepalive = 15,        -- silence before a keep-alive comment
  -- drain_timeout = 300,   -- what running calls get on SIGTERM and after an upgrade
  -- upgrade_timeout = 60,  -- what a successor (moongate upgrade) gets to become ready
  -- timeouts = {
  --   connect = 5, tls = 5, first_byte_stream = 120, first_byte = 600, event = 120,
  --   client_header = 10, client_body = 30, client_keep_alive = 75, client_write = 60,
  -- },

  credit_usd = env("CREDIT_USD", "1"),
  -- Calls charged to a wallet for a model without a price: "deny" or "free".
  unpriced_models = env("UNPRICED_MODELS", "deny"),
  allow_registration = env("ALLOW_REGISTRATION", true),

  -- limits = {
  --   target_bytes = 8192, header_bytes = 32768, header_count = 100, body_bytes = 33554432,
  --   admin_body_bytes = 1048576, bodies_total_bytes = 1073741824, answer_bytes = 67108864,
  --   -- Of clients; fewer when the limit of descriptors asks for it. Trusted proxies have no cap
  --   -- per address. The admin listener and the control socket have seats of their own.
  --   connections = 60000, connections_per_ip = 1000, operator_connections = 64,
  --   -- New calls are refused at 95 % of it; 0: the control group's, else 80 % of the machine's.
  --   memory_bytes = 0,
  --   -- Turns of a worker that take longer all the time are overload: new calls are refused.
  --   queue_delay = 0.1,
  -- },

  log = {
    level = env("LOG_LEVEL", "info"), -- debug, info, warn, error
    -- file = "",     -- default: standard error
    -- access = true, -- one JSON line per call
  },

  -- The plugins in their order: the first that identifies a caller or selects upstreams wins; the
  -- others run one after the other. An entry is a name, or a table with the plugin's settings:
  --   { name = "discount", path = "my/discount", trusted = false, floor = "0.5",
  --     api_key = secret("SOME_KEY") }
  -- Plugins are searched in plugin_dirs, then among the shipped ones.
  -- plugin_dirs = { "plugins" },
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
  -- lua = { memory_bytes = 268435456, instructions = 5000000, watchdog_ms = 250,
  --   stuck_ms = 10000 },
}

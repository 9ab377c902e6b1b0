-- Times are milliseconds since 1970 UTC, money is nano-USD, rates are parts per million.

CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    username TEXT NOT NULL COLLATE NOCASE UNIQUE,
    email TEXT COLLATE NOCASE,
    password_hash TEXT,
    display_name TEXT,
    avatar_url TEXT,
    phone TEXT,
    grp TEXT NOT NULL DEFAULT 'default',
    is_admin INTEGER NOT NULL DEFAULT 0 CHECK (is_admin IN (0, 1)),
    is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    is_silenced INTEGER NOT NULL DEFAULT 0,
    is_beta INTEGER NOT NULL DEFAULT 0,
    is_external INTEGER NOT NULL DEFAULT 0,
    trust_level INTEGER NOT NULL DEFAULT 0,
    login_type TEXT,
    external_data TEXT,
    access_token_hash BLOB,
    discount_ppm INTEGER NOT NULL DEFAULT 1000000 CHECK (discount_ppm BETWEEN 1 AND 1000000),
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    last_login_ms INTEGER,
    deleted_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX users_email ON users (email) WHERE email IS NOT NULL;
CREATE UNIQUE INDEX users_access_token ON users (access_token_hash)
    WHERE access_token_hash IS NOT NULL;

CREATE TABLE external_identities (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider TEXT NOT NULL,
    subject TEXT NOT NULL,
    data TEXT,
    created_ms INTEGER NOT NULL,
    UNIQUE (provider, subject)
) STRICT;
CREATE INDEX external_identities_user ON external_identities (user_id);

CREATE TABLE sessions (
    jti TEXT NOT NULL PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('access', 'refresh', 'cookie')),
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT;
CREATE INDEX sessions_user ON sessions (user_id);
CREATE INDEX sessions_expiry ON sessions (expires_ms);

CREATE TABLE upstreams (
    id INTEGER PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    provider TEXT NOT NULL,
    base_url TEXT NOT NULL,
    api_key_enc TEXT,
    key_mask TEXT,
    formats TEXT NOT NULL,
    models TEXT,
    is_default INTEGER NOT NULL DEFAULT 0 CHECK (is_default IN (0, 1)),
    is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    timeout_s INTEGER CHECK (timeout_s BETWEEN 1 AND 3600),
    weight INTEGER NOT NULL DEFAULT 50 CHECK (weight >= 1),
    priority INTEGER NOT NULL DEFAULT 0,
    passthrough TEXT CHECK (passthrough IN ('all')),
    disconnect TEXT CHECK (disconnect IN ('cancel', 'drain')),
    connect_ms INTEGER NOT NULL DEFAULT 0 CHECK (connect_ms >= 0),
    tls_ms INTEGER NOT NULL DEFAULT 0 CHECK (tls_ms >= 0),
    first_byte_ms INTEGER NOT NULL DEFAULT 0 CHECK (first_byte_ms >= 0),
    event_ms INTEGER NOT NULL DEFAULT 0 CHECK (event_ms >= 0),
    config TEXT,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX upstreams_one_default ON upstreams (is_default) WHERE is_default = 1;

CREATE TABLE api_keys (
    id INTEGER PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    user_id INTEGER REFERENCES users (id),
    scheme TEXT NOT NULL DEFAULT 'auto',
    key_hash BLOB NOT NULL UNIQUE CHECK (length(key_hash) = 32),
    key_prefix TEXT NOT NULL,
    key_display TEXT NOT NULL DEFAULT '',
    name TEXT NOT NULL,
    description TEXT,
    is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    revoked_ms INTEGER,
    expires_ms INTEGER,
    has_upstream_list INTEGER NOT NULL DEFAULT 0,
    rpm INTEGER NOT NULL DEFAULT 0 CHECK (rpm >= 0),
    rpd INTEGER NOT NULL DEFAULT 0 CHECK (rpd >= 0),
    quota_limit INTEGER,
    quota_used INTEGER NOT NULL DEFAULT 0,
    token_limit INTEGER,
    discount_ppm INTEGER NOT NULL DEFAULT 1000000 CHECK (discount_ppm BETWEEN 1 AND 1000000),
    allowed_models TEXT,
    allow_ips TEXT,
    batch_id TEXT,
    request_count INTEGER NOT NULL DEFAULT 0,
    token_count INTEGER NOT NULL DEFAULT 0,
    cost_nano INTEGER NOT NULL DEFAULT 0,
    last_used_ms INTEGER,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX api_keys_user ON api_keys (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX api_keys_created ON api_keys (created_ms);

CREATE TABLE api_key_upstreams (
    api_key_id INTEGER NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    upstream_id INTEGER NOT NULL REFERENCES upstreams (id) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (api_key_id, upstream_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX api_key_upstreams_upstream ON api_key_upstreams (upstream_id);

-- Versions of prices: nano-USD per million tokens, per_call nano-USD; NULL is not set. A version
-- is never changed, only retired, because log rows name it.
CREATE TABLE prices (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    input INTEGER,
    output INTEGER,
    cache_read INTEGER,
    cache_write_5m INTEGER,
    cache_write_1h INTEGER,
    reasoning INTEGER,
    audio_in INTEGER,
    audio_out INTEGER,
    image_in INTEGER,
    per_call INTEGER,
    max_output INTEGER,
    source TEXT,
    valid_from_ms INTEGER NOT NULL,
    retired_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX prices_living ON prices (model) WHERE retired_ms IS NULL;

-- The feed from which the catalogue and the directory follow trusted writes.
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('key', 'user', 'upstream', 'price')),
    id INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    owner_epoch INTEGER NOT NULL,
    owner TEXT NOT NULL,
    is_held INTEGER NOT NULL,
    taken_ms INTEGER NOT NULL
) STRICT;

-- The last journal record that is folded into this database.
CREATE TABLE applied (
    name TEXT NOT NULL PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT;

CREATE TABLE quarantine (
    seq INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    record BLOB NOT NULL,
    error TEXT NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

-- key_id and upstream_id 0: none. model '': the call never reached an upstream.
CREATE TABLE rollups_hourly (
    hour_ms INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    upstream_id INTEGER NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    successes INTEGER NOT NULL,
    input INTEGER NOT NULL,
    cache_read INTEGER NOT NULL,
    cache_write_5m INTEGER NOT NULL,
    cache_write_1h INTEGER NOT NULL,
    audio_in INTEGER NOT NULL,
    image_in INTEGER NOT NULL,
    output INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    audio_out INTEGER NOT NULL,
    server_calls INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    PRIMARY KEY (hour_ms, key_id, upstream_id, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    detail TEXT
) STRICT;
CREATE INDEX audit_log_at ON audit_log (at_ms);

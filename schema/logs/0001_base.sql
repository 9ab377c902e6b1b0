-- One row per finished exchange, in the order of the journal. The exchange's id carries its time,
-- so a row is found by id through created_ms and needs no random unique index.
CREATE TABLE request_logs (
    seq INTEGER PRIMARY KEY,
    exchange_id BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    key_id INTEGER,
    user_id INTEGER,
    upstream_id INTEGER,
    key_prefix TEXT NOT NULL,
    request_id TEXT NOT NULL,
    client_ip TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    dialect TEXT NOT NULL,
    model TEXT NOT NULL,
    upstream_model TEXT NOT NULL,
    status INTEGER NOT NULL,
    is_stream INTEGER NOT NULL,
    is_success INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    ttft_ms INTEGER,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    finish TEXT NOT NULL,
    error_code TEXT NOT NULL,
    error_message TEXT NOT NULL,
    flags TEXT NOT NULL,
    session TEXT NOT NULL,
    plugin TEXT NOT NULL,
    discounts TEXT NOT NULL,
    attempts TEXT NOT NULL,
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
    usage_flags INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL,
    price_version INTEGER
) STRICT;
CREATE INDEX request_logs_created ON request_logs (created_ms);
CREATE INDEX request_logs_key ON request_logs (key_id, created_ms);
CREATE INDEX request_logs_user ON request_logs (user_id, created_ms) WHERE user_id IS NOT NULL;
CREATE INDEX request_logs_upstream ON request_logs (upstream_id, created_ms);
CREATE INDEX request_logs_status ON request_logs (status, created_ms);
CREATE INDEX request_logs_model ON request_logs (model, created_ms);

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

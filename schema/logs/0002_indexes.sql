-- Each index costs every exchange. Those of few values (upstream, model, status) gave way to one that
-- grows at its end only and holds all that a list filters by; errors, which are few, keep their own.
DROP INDEX request_logs_created;
DROP INDEX request_logs_upstream;
DROP INDEX request_logs_status;
DROP INDEX request_logs_model;
CREATE INDEX request_logs_time
    ON request_logs (created_ms, seq, key_id, user_id, upstream_id, status, model);
CREATE INDEX request_logs_error ON request_logs (status, created_ms) WHERE status >= 400;

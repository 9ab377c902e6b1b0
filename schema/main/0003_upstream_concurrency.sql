-- Calls that may be in flight at an upstream together; 0: no cap of ours.
ALTER TABLE upstreams ADD COLUMN max_concurrency INTEGER NOT NULL DEFAULT 0
    CHECK (max_concurrency >= 0);

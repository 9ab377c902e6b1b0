-- One row per start of a process on these files. While a process drains after an upgrade two are
-- alive; what another left open (its holds) belongs to nobody only when its row has an end.
CREATE TABLE owners (
    owner INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    how TEXT CHECK (how IN ('stopped', 'died'))
) STRICT;

-- Facts of exchanges, append-only, dropped by range when both databases have them.
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY,
    record BLOB NOT NULL
) STRICT;

-- Which process wrote a record (table owners of main.db), for what a dead one left open.
ALTER TABLE journal ADD COLUMN owner INTEGER NOT NULL DEFAULT 0;

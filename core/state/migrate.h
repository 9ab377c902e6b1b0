#pragma once
// Numbered SQL files applied in order to one database, each in one transaction together with its
// record in schema_migrations (set, name, SHA-256). A file that was changed after it had been
// applied, and a record without a file (a database of a newer version), are errors. Start-up or a
// helper thread.
#include "base/arena.h"
#include "state/db.h"
#include "state/store.h"

// Applies what is missing in dir. plugin empty: trusted set; else the scripts run under the
// plugin's restriction. error ≥ 256 bytes.
GW_MUSTCHECK int migrate_apply(struct db *db, const char *set, const char *dir, struct slice plugin,
                               char *error, size_t error_size);
// GW_EBUSY: a file of dir that is not applied says in its first line, "-- exclusive", that it must
// not be while another process still uses the database.
GW_MUSTCHECK int migrate_check_shared(struct db *db, const char *set, const char *dir, char *error,
                                      size_t error_size);
// Files of dir and whether they are applied; db NULL: none is. list grows in the arena.
struct migrate_list {
    struct migration_status *items;
    size_t count, capacity, pending;
};
GW_MUSTCHECK int migrate_status(struct db *db, const char *set, const char *dir,
                                struct arena *arena, struct migrate_list *list, char *error,
                                size_t error_size);

#pragma once
// A thin synchronous layer over one SQLite connection: prepared statements (cached), bound values,
// rows. Only prepared statements with bound values exist here: nothing builds SQL from input.
// Used on store's own threads and at start-up, never on a worker.
#include "base/arena.h"
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

struct db;

enum db_kind { DB_NULL, DB_INT, DB_REAL, DB_TEXT, DB_BLOB };
struct db_value {
    enum db_kind kind;
    int64_t integer;
    double real;
    struct slice bytes; // text or blob
};
#define DB_NULL_VALUE ((struct db_value){.kind = DB_NULL})
#define DB_INT_VALUE(n) ((struct db_value){.kind = DB_INT, .integer = (n)})
#define DB_TEXT_VALUE(s) ((struct db_value){.kind = DB_TEXT, .bytes = (s)})
#define DB_BLOB_VALUE(s) ((struct db_value){.kind = DB_BLOB, .bytes = (s)})

struct db_rows { // arena memory
    size_t column_count, row_count;
    struct slice *columns;
    struct db_value *values; // row × column_count + column
};

enum db_open_flags { DB_OPEN_CREATE = 1, DB_OPEN_READONLY = 2, DB_OPEN_FULL_SYNC = 4 };
// WAL, foreign keys on, DEFENSIVE, busy time-out. error ≥ 256 bytes.
GW_MUSTCHECK int db_open(const char *path, int flags, struct db **out, char *error,
                         size_t error_size);
void db_close(struct db *db);
const char *db_error(const struct db *db); // text of the last failure
// Binds and runs one statement; rows may be NULL. GW_EINVAL: SQL error; GW_EEXISTS: a UNIQUE or
// PRIMARY KEY constraint; GW_EINVAL: another constraint; GW_EBUSY; GW_EFULL; GW_EIO; GW_ECORRUPT;
// GW_ETOOBIG: more than max_rows (0 = 100,000) or 64 MiB.
GW_MUSTCHECK int db_run(struct db *db, struct slice sql, const struct db_value *args,
                        size_t arg_count, struct arena *arena, size_t max_rows,
                        struct db_rows *rows);
// Runs one query and calls on_row for each row, without keeping any: values are borrowed for the
// call. A negative result of on_row ends it and is given back.
GW_MUSTCHECK int db_each(struct db *db, struct slice sql, const struct db_value *args,
                         size_t arg_count,
                         int (*on_row)(void *user, const struct db_value *values, size_t count),
                         void *user);
int64_t db_changes(const struct db *db);
int64_t db_last_id(const struct db *db);
GW_MUSTCHECK int db_begin(struct db *db, bool is_write);
GW_MUSTCHECK int db_commit(struct db *db); // GW_ECANCELLED: it was rolled back before
void db_rollback(struct db *db);
// Runs a migration script (several statements); trusted text only.
GW_MUSTCHECK int db_script(struct db *db, const char *sql, char *error, size_t error_size);
// A consistent copy of the whole database into a new file of mode 0600 (SQLite's backup).
GW_MUSTCHECK int db_backup(struct db *db, const char *to_path, char *error, size_t error_size);
// Restricts the connection to what plugin `plugin` may do: read the main tables without columns of
// secrets and without the store's own tables; read, write, create and drop p_<plugin>_* tables and
// indexes; one statement at a time, no transactions, no PRAGMA, no ATTACH (GW_EDENIED). Until
// called with an empty slice. Past budget_ms (0: none) a statement ends with GW_ETIMEOUT, and so
// does waiting for a lock. A plugin's name that begins with another's and '_' shares its tables.
void db_restrict(struct db *db, struct slice plugin, uint32_t budget_ms);

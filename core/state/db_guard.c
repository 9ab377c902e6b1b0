// What a plugin's SQL may do, and how long: SQLite's authorizer (asked while a statement is
// prepared), its progress handler (asked while one runs) and the wait for locks. The handlers stay
// installed; without a restriction they allow everything. (Installing them anew would throw away
// all prepared statements.)
#include "base/clock.h"
#include "state/db_impl.h"
#include <stdio.h>
#include <time.h>

#define BUSY_LIMIT_MS 60000 // another process may hold the file for half a minute (PROMISES F4)
#define PROGRESS_STEPS 2000

static const struct {
    int id, value;
} limits[DB_LIMITS] = {
    {SQLITE_LIMIT_LENGTH, 16 << 20},      {SQLITE_LIMIT_SQL_LENGTH, 64 << 10},
    {SQLITE_LIMIT_COLUMN, 200},           {SQLITE_LIMIT_EXPR_DEPTH, 100},
    {SQLITE_LIMIT_COMPOUND_SELECT, 20},   {SQLITE_LIMIT_VDBE_OP, 50000},
    {SQLITE_LIMIT_FUNCTION_ARG, 32},      {SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000},
    {SQLITE_LIMIT_VARIABLE_NUMBER, 1000},
};

// Tables of the store itself, and columns that hold secrets.
static const struct {
    const char *table, *column; // column NULL: all
} hidden[] = {
    {"leases", NULL},
    {"owners", NULL},
    {"applied", NULL},
    {"changes", NULL},
    {"quarantine", NULL},
    {"sessions", NULL},
    {"journal", NULL},
    {"api_keys", "key_hash"},
    {"upstreams", "api_key_enc"},
    {"users", "password_hash"},
    {"users", "access_token_hash"},
    {"accounts", "api_key_enc"},
    {"oauth_tokens", "access_enc"},
    {"oauth_tokens", "refresh_enc"},
    {"provider_accounts", "api_key_enc"},
};

static bool is_schema(const char *name)
{
    return sqlite3_stricmp(name, "sqlite_master") == 0 ||
           sqlite3_stricmp(name, "sqlite_schema") == 0;
}

static bool is_own(const struct db *db, const char *name)
{
    char prefix[DB_PLUGIN_MAX + 8];
    int len = snprintf(prefix, sizeof(prefix), "p_%s_", db->plugin);
    return name && sqlite3_strnicmp(name, prefix, len) == 0;
}

static bool may_read(const struct db *db, const char *table, const char *column)
{
    if (is_own(db, table) || is_schema(table))
        return true;
    if (sqlite3_strnicmp(table, "p_", 2) == 0 || sqlite3_strnicmp(table, "sqlite_", 7) == 0)
        return false;
    for (size_t i = 0; i < sizeof(hidden) / sizeof(hidden[0]); i++)
        if (sqlite3_stricmp(table, hidden[i].table) == 0 &&
            (!hidden[i].column || (column && sqlite3_stricmp(column, hidden[i].column) == 0)))
            return false;
    return true;
}

static bool may_call(const char *function)
{
    static const char *const denied[] = {
        "load_extension", "readfile",   "writefile",           "edit",
        "fts3_tokenizer", "randomblob", "sqlite_rename_table", "zeroblob",
    };
    for (size_t i = 0; i < sizeof(denied) / sizeof(denied[0]); i++)
        if (sqlite3_stricmp(function, denied[i]) == 0)
            return false;
    return true;
}

// SQLite checks the rows of a table that gets a column with a constraint (newer versions: any to a
// STRICT one) by PRAGMA quick_check, which it prepares while the ALTER TABLE runs. The pragma is
// allowed there and nowhere else.
static bool is_altering(const struct db *db)
{
    for (sqlite3_stmt *stmt = NULL; (stmt = sqlite3_next_stmt(db->handle, stmt)) != NULL;) {
        const char *sql = sqlite3_stmt_busy(stmt) ? sqlite3_sql(stmt) : NULL;
        if (sql == NULL)
            continue;
        for (;;) {
            sql += strspn(sql, " \t\r\n\f;");
            const char *end = NULL;
            if (strncmp(sql, "--", 2) == 0)
                end = strchr(sql, '\n');
            else if (strncmp(sql, "/*", 2) == 0 && (end = strstr(sql + 2, "*/")) != NULL)
                end += 2;
            if (end == NULL)
                break;
            sql = end;
        }
        if (sqlite3_strnicmp(sql, "ALTER", 5) == 0)
            return true;
    }
    return false;
}

static int authorize(void *user, int action, const char *first, const char *second,
                     const char *database, const char *trigger)
{
    const struct db *db = user;
    bool is_allowed = false;
    if (!db->plugin[0])
        return SQLITE_OK;
    if (database && sqlite3_stricmp(database, "main") != 0)
        return SQLITE_DENY;
    (void)trigger;
    switch (action) {
    case SQLITE_SELECT:
    case SQLITE_RECURSIVE: is_allowed = true; break;
    case SQLITE_READ: is_allowed = may_read(db, first, second); break;
    case SQLITE_FUNCTION: is_allowed = may_call(second); break;
    // Writing the schema by hand is refused by SQLite itself (DEFENSIVE).
    case SQLITE_INSERT:
    case SQLITE_UPDATE:
    case SQLITE_DELETE: is_allowed = is_own(db, first) || is_schema(first); break;
    case SQLITE_CREATE_TABLE:
    case SQLITE_DROP_TABLE:
    case SQLITE_REINDEX: is_allowed = is_own(db, first); break;
    case SQLITE_CREATE_INDEX:
    case SQLITE_DROP_INDEX: // an automatic one belongs to its table
        is_allowed = is_own(db, second) &&
                     (is_own(db, first) || sqlite3_strnicmp(first, "sqlite_autoindex_", 17) == 0);
        break;
    case SQLITE_ALTER_TABLE: is_allowed = is_own(db, second); break;
    case SQLITE_PRAGMA:
        is_allowed = sqlite3_stricmp(first, "quick_check") == 0 && database != NULL &&
                     is_own(db, second) && is_altering(db);
        break;
    default: break;
    }
    return is_allowed ? SQLITE_OK : SQLITE_DENY;
}

static int on_progress(void *user)
{
    const struct db *db = user;
    return db->deadline_ns && clock_boot_ns() > db->deadline_ns;
}

static int on_busy(void *user, int tries)
{
    static const int pauses_ms[] = {1, 1, 2, 5, 10, 20, 25};
    const struct db *db = user;
    const int last = sizeof(pauses_ms) / sizeof(pauses_ms[0]) - 1;
    int pause_ms = pauses_ms[tries < last ? tries : last];
    if (db->deadline_ns ? clock_boot_ns() > db->deadline_ns : tries * 25 > BUSY_LIMIT_MS)
        return 0;
    nanosleep(&(struct timespec){0, pause_ms * 1000000L}, NULL);
    return 1;
}

void db_guard_install(struct db *db)
{
    for (size_t i = 0; i < DB_LIMITS; i++)
        db->limits[i] = sqlite3_limit(db->handle, limits[i].id, -1);
    sqlite3_set_authorizer(db->handle, authorize, db);
    sqlite3_progress_handler(db->handle, PROGRESS_STEPS, on_progress, db);
    sqlite3_busy_handler(db->handle, on_busy, db);
}

void db_restrict(struct db *db, struct slice plugin, uint32_t budget_ms)
{
    bool is_restricted = plugin.len > 0;
    // A name that is too long must not become another plugin's.
    gw_require(plugin.len <= DB_PLUGIN_MAX);
    if (is_restricted)
        memcpy(db->plugin, plugin.ptr, plugin.len);
    db->plugin[plugin.len] = '\0';
    db->deadline_ns =
        is_restricted && budget_ms ? clock_boot_ns() + (uint64_t)budget_ms * 1000000 : 0;
    for (size_t i = 0; i < DB_LIMITS; i++)
        sqlite3_limit(db->handle, limits[i].id, is_restricted ? limits[i].value : db->limits[i]);
}

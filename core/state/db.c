// One SQLite connection. Statements are prepared once and kept by their text, least recently used
// out first. A statement that was prepared under a plugin's restriction serves that plugin only,
// because the authorizer looks at statements when they are prepared.
#include "state/db.h"
#include "base/log.h"
#include "state/db_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ROWS_DEFAULT 100000
#define BYTES_MAX (64u << 20)

static int err_of(int code)
{
    switch (code & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE: return 0;
    case SQLITE_CONSTRAINT:
        return code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY ||
                       code == SQLITE_CONSTRAINT_ROWID
                   ? GW_EEXISTS
                   : GW_EINVAL;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return GW_EBUSY;
    case SQLITE_FULL: return GW_EFULL;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN: return GW_EIO;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return GW_ECORRUPT;
    case SQLITE_NOMEM: return GW_ENOMEM;
    case SQLITE_TOOBIG: return GW_ETOOBIG;
    case SQLITE_INTERRUPT: return GW_ETIMEOUT;
    case SQLITE_AUTH:
    case SQLITE_READONLY: return GW_EDENIED;
    default: return GW_EINVAL;
    }
}

static int fail(struct db *db, int code)
{
    snprintf(db->error, sizeof(db->error), "%s", sqlite3_errmsg(db->handle));
    // A refused function has no code of its own.
    if (code == SQLITE_ERROR && strncmp(db->error, "not authorized", 14) == 0)
        return GW_EDENIED;
    return err_of(code);
}

static int fail_text(struct db *db, int err, const char *text)
{
    snprintf(db->error, sizeof(db->error), "%s", text);
    return err;
}

const char *db_error(const struct db *db)
{
    return db->error;
}

static int create_file(const char *path, char *error, size_t error_size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) {
        close(fd);
        return 0;
    }
    if (errno == EEXIST)
        return 0;
    snprintf(error, error_size, "%s: %s", path, strerror(errno));
    return GW_EIO;
}

static int pragma(struct db *db, const char *text)
{
    return db_run(db, slice_str(text), NULL, 0, NULL, 0, NULL);
}

static pthread_once_t config_once = PTHREAD_ONCE_INIT;

// SQLite's own count of its memory, which nobody reads, takes a global lock at each allocation.
static void configure(void)
{
    (void)sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0); // refused when SQLite is in use already
    // Pages are allocated when they are needed, not twenty per connection at its opening.
    (void)sqlite3_config(SQLITE_CONFIG_PAGECACHE, NULL, 0, 0);
}

int db_open(const char *path, int flags, struct db **out, char *error, size_t error_size)
{
    pthread_once(&config_once, configure);
    // The -wal and -shm files get the same mode from SQLite.
    if (flags & DB_OPEN_CREATE) {
        int err = create_file(path, error, error_size);
        if (err)
            return err;
    }
    struct db *db = calloc(1, sizeof(*db));
    if (!db) {
        snprintf(error, error_size, "%s: out of memory", path);
        return GW_ENOMEM;
    }
    int mode = flags & DB_OPEN_READONLY ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
    int code = sqlite3_open_v2(path, &db->handle,
                               mode | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    int err = code == SQLITE_OK ? 0 : db->handle ? fail(db, code) : GW_ENOMEM;
    if (err == 0) {
        sqlite3_db_config(db->handle, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
        sqlite3_db_config(db->handle, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
        sqlite3_db_config(db->handle, SQLITE_DBCONFIG_DQS_DML, 0, NULL);
        sqlite3_db_config(db->handle, SQLITE_DBCONFIG_DQS_DDL, 0, NULL);
        sqlite3_db_config(db->handle, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0, NULL);
        db_guard_install(db);
    }
    if (err == 0 && !(flags & DB_OPEN_READONLY))
        err = pragma(db, "PRAGMA journal_mode = WAL");
    if (err == 0)
        err = pragma(db, flags & DB_OPEN_FULL_SYNC ? "PRAGMA synchronous = FULL"
                                                   : "PRAGMA synchronous = NORMAL");
    if (err == 0)
        err = pragma(db, "PRAGMA foreign_keys = ON");
    if (err == 0)
        err = pragma(db, "PRAGMA temp_store = MEMORY");
    if (err == 0)
        err = pragma(db, "PRAGMA cache_size = -8192");
    // A first read: a file that is no database, or a damaged one, is told here.
    if (err == 0)
        err = pragma(db, "SELECT count(*) FROM sqlite_schema");
    if (err) {
        snprintf(error, error_size, "%s: %s", path, db->error);
        db_close(db);
        return err;
    }
    *out = db;
    return 0;
}

static void drop_statement(struct db_statement *statement)
{
    sqlite3_finalize(statement->handle);
    free(statement->sql);
    *statement = (struct db_statement){0};
}

void db_close(struct db *db)
{
    if (!db)
        return;
    for (size_t i = 0; i < DB_STATEMENTS; i++)
        drop_statement(&db->statements[i]);
    // Fails only when a statement or backup was left open.
    gw_require(sqlite3_close(db->handle) == SQLITE_OK);
    free(db);
}

// FNV-1a: the texts are our own or a plugin's constants.
static uint64_t hash_text(struct slice text)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < text.len; i++)
        hash = (hash ^ (unsigned char)text.ptr[i]) * UINT64_C(1099511628211);
    return hash;
}

static bool is_blank(const char *text, const char *end)
{
    for (; text < end; text++)
        if (!strchr(" \t\r\n;", *text) || *text == '\0')
            return false;
    return true;
}

static bool is_statement(const struct db *db, const struct db_statement *statement,
                         struct slice sql)
{
    return statement->handle && statement->len == sql.len &&
           memcmp(statement->sql, sql.ptr, sql.len) == 0 &&
           strcmp(statement->plugin, db->plugin) == 0;
}

// Nearly every text is a constant: its address says where its statement lies, so that a row of a
// batch pays for no hash of a long text and no search.
static struct db_statement *hinted(struct db *db, struct slice sql)
{
    size_t at = ((uintptr_t)sql.ptr >> 3 ^ (uintptr_t)sql.ptr >> 11) % DB_HINTS;
    return &db->statements[db->hints[at] % DB_STATEMENTS];
}

static void set_hint(struct db *db, struct slice sql, size_t index)
{
    size_t at = ((uintptr_t)sql.ptr >> 3 ^ (uintptr_t)sql.ptr >> 11) % DB_HINTS;
    db->hints[at] = (uint8_t)index;
}

static int prepare(struct db *db, struct slice sql, sqlite3_stmt **out)
{
    struct db_statement *hint = hinted(db, sql);
    if (is_statement(db, hint, sql)) {
        hint->used = ++db->uses;
        *out = hint->handle;
        return 0;
    }
    uint64_t hash = hash_text(sql);
    struct db_statement *victim = &db->statements[0];
    for (size_t i = 0; i < DB_STATEMENTS; i++) {
        struct db_statement *statement = &db->statements[i];
        if (statement->hash == hash && is_statement(db, statement, sql)) {
            set_hint(db, sql, i);
            statement->used = ++db->uses;
            *out = statement->handle;
            return 0;
        }
        if (statement->used < victim->used)
            victim = statement;
    }
    if (sql.len > INT32_MAX)
        return fail_text(db, GW_ETOOBIG, "statement too long");
    const char *tail = NULL;
    sqlite3_stmt *handle = NULL;
    int code = sqlite3_prepare_v3(db->handle, sql.ptr, (int)sql.len, SQLITE_PREPARE_PERSISTENT,
                                  &handle, &tail);
    if (code != SQLITE_OK)
        return fail(db, code);
    if (!handle)
        return fail_text(db, GW_EINVAL, "empty statement");
    char *copy = NULL;
    int err = 0;
    if (!is_blank(tail, sql.ptr + sql.len))
        err = fail_text(db, GW_EINVAL, "more than one statement");
    else if (!(copy = malloc(sql.len + 1)))
        err = fail_text(db, GW_ENOMEM, "out of memory");
    if (err) {
        sqlite3_finalize(handle);
        return err;
    }
    memcpy(copy, sql.ptr, sql.len);
    drop_statement(victim);
    *victim = (struct db_statement){handle, copy, sql.len, hash, ++db->uses, ""};
    memcpy(victim->plugin, db->plugin, sizeof(victim->plugin));
    set_hint(db, sql, (size_t)(victim - db->statements));
    *out = handle;
    return 0;
}

static int bind(struct db *db, sqlite3_stmt *handle, const struct db_value *args, size_t count)
{
    if ((size_t)sqlite3_bind_parameter_count(handle) != count)
        return fail_text(db, GW_EINVAL, "number of values differs from number of parameters");
    for (size_t i = 0; i < count; i++) {
        const struct db_value *arg = &args[i];
        const char *bytes = arg->bytes.len ? arg->bytes.ptr : "";
        int at = (int)i + 1, code = SQLITE_OK;
        switch (arg->kind) {
        case DB_NULL: code = sqlite3_bind_null(handle, at); break;
        case DB_INT: code = sqlite3_bind_int64(handle, at, arg->integer); break;
        case DB_REAL: code = sqlite3_bind_double(handle, at, arg->real); break;
        case DB_TEXT:
            code =
                sqlite3_bind_text64(handle, at, bytes, arg->bytes.len, SQLITE_STATIC, SQLITE_UTF8);
            break;
        case DB_BLOB:
            code = sqlite3_bind_blob64(handle, at, bytes, arg->bytes.len, SQLITE_STATIC);
            break;
        }
        if (code != SQLITE_OK)
            return fail(db, code);
    }
    return 0;
}

static struct db_value column_value(sqlite3_stmt *handle, int column)
{
    struct db_value value = DB_NULL_VALUE;
    switch (sqlite3_column_type(handle, column)) {
    case SQLITE_INTEGER:
        value.kind = DB_INT;
        value.integer = sqlite3_column_int64(handle, column);
        break;
    case SQLITE_FLOAT:
        value.kind = DB_REAL;
        value.real = sqlite3_column_double(handle, column);
        break;
    case SQLITE_TEXT:
        value.kind = DB_TEXT;
        value.bytes.ptr = (const char *)sqlite3_column_text(handle, column);
        value.bytes.len = (size_t)sqlite3_column_bytes(handle, column);
        break;
    case SQLITE_BLOB:
        value.kind = DB_BLOB;
        value.bytes.ptr = sqlite3_column_blob(handle, column);
        value.bytes.len = (size_t)sqlite3_column_bytes(handle, column);
        break;
    default: break;
    }
    if ((value.kind == DB_TEXT || value.kind == DB_BLOB) && !value.bytes.ptr)
        value.bytes = SLICE_LIT("");
    return value;
}

struct collector {
    struct db *db;
    struct arena *arena;
    struct db_rows *rows;
    size_t max_rows, capacity, bytes;
};

static int collect_columns(struct collector *collector, sqlite3_stmt *handle)
{
    struct db_rows *rows = collector->rows;
    *rows = (struct db_rows){0};
    rows->column_count = (size_t)sqlite3_column_count(handle);
    if (rows->column_count == 0)
        return 0;
    rows->columns = arena_alloc(collector->arena, rows->column_count * sizeof(*rows->columns));
    if (!rows->columns)
        return GW_ENOMEM;
    for (size_t i = 0; i < rows->column_count; i++) {
        const char *name = sqlite3_column_name(handle, (int)i);
        rows->columns[i] = arena_copy(collector->arena, slice_str(name ? name : ""));
        if (!rows->columns[i].ptr)
            return GW_ENOMEM;
    }
    return 0;
}

static int collect_row(struct collector *collector, sqlite3_stmt *handle)
{
    struct db_rows *rows = collector->rows;
    if (rows->row_count == collector->max_rows)
        return fail_text(collector->db, GW_ETOOBIG, "too many rows");
    if (rows->row_count == collector->capacity) {
        size_t capacity = collector->capacity ? collector->capacity * 2 : 8;
        size_t width = rows->column_count * sizeof(struct db_value);
        struct db_value *values = arena_alloc(collector->arena, capacity * width);
        if (!values)
            return fail_text(collector->db, GW_ENOMEM, "out of memory for rows");
        if (rows->row_count)
            memcpy(values, rows->values, rows->row_count * width);
        rows->values = values;
        collector->capacity = capacity;
    }
    struct db_value *row = &rows->values[rows->row_count * rows->column_count];
    for (size_t i = 0; i < rows->column_count; i++) {
        row[i] = column_value(handle, (int)i);
        collector->bytes += sizeof(row[i]) + row[i].bytes.len;
        if (collector->bytes > BYTES_MAX)
            return fail_text(collector->db, GW_ETOOBIG, "rows are larger than 64 MiB");
        if (row[i].kind == DB_TEXT || row[i].kind == DB_BLOB) {
            row[i].bytes = arena_copy(collector->arena, row[i].bytes);
            if (!row[i].bytes.ptr)
                return fail_text(collector->db, GW_ENOMEM, "out of memory for rows");
        }
    }
    rows->row_count++;
    return 0;
}

int db_run(struct db *db, struct slice sql, const struct db_value *args, size_t arg_count,
           struct arena *arena, size_t max_rows, struct db_rows *rows)
{
    sqlite3_stmt *handle = NULL;
    struct collector collector = {db, arena, rows, max_rows ? max_rows : ROWS_DEFAULT, 0, 0};
    db->error[0] = '\0';
    int err = prepare(db, sql, &handle);
    if (err)
        return err;
    err = bind(db, handle, args, arg_count);
    bool has_columns = false;
    while (err == 0) {
        int code = sqlite3_step(handle);
        if (code != SQLITE_ROW && code != SQLITE_DONE) {
            err = fail(db, code);
            break;
        }
        // After the first step: only then has SQLite re-prepared after a change of the schema.
        if (rows && !has_columns) {
            has_columns = true;
            err = collect_columns(&collector, handle);
            if (err)
                fail_text(db, err, "out of memory for rows");
        }
        if (code == SQLITE_DONE)
            break;
        if (rows && err == 0)
            err = collect_row(&collector, handle);
    }
    sqlite3_reset(handle);
    sqlite3_clear_bindings(handle);
    return err;
}

int db_each(struct db *db, struct slice sql, const struct db_value *args, size_t arg_count,
            int (*on_row)(void *user, const struct db_value *values, size_t count), void *user)
{
    struct db_value values[64];
    sqlite3_stmt *handle = NULL;
    db->error[0] = '\0';
    int err = prepare(db, sql, &handle);
    if (err)
        return err;
    err = bind(db, handle, args, arg_count);
    while (err == 0) {
        int code = sqlite3_step(handle);
        if (code == SQLITE_DONE)
            break;
        if (code != SQLITE_ROW) {
            err = fail(db, code);
            break;
        }
        int count = sqlite3_column_count(handle);
        if (count > 64) {
            err = fail_text(db, GW_ETOOBIG, "too many columns");
            break;
        }
        for (int i = 0; i < count; i++)
            values[i] = column_value(handle, i);
        err = on_row(user, values, (size_t)count);
    }
    sqlite3_reset(handle);
    sqlite3_clear_bindings(handle);
    return err;
}

int64_t db_changes(const struct db *db)
{
    return sqlite3_changes64(db->handle);
}

int64_t db_last_id(const struct db *db)
{
    return sqlite3_last_insert_rowid(db->handle);
}

int db_begin(struct db *db, bool is_write)
{
    return pragma(db, is_write ? "BEGIN IMMEDIATE" : "BEGIN");
}

int db_commit(struct db *db)
{
    // An interrupted or failed statement may have rolled everything back by itself.
    if (sqlite3_get_autocommit(db->handle))
        return fail_text(db, GW_ECANCELLED, "the transaction was rolled back");
    return pragma(db, "COMMIT");
}

void db_rollback(struct db *db)
{
    char error[sizeof(db->error)];
    if (sqlite3_get_autocommit(db->handle))
        return;
    memcpy(error, db->error, sizeof(error)); // the reason for it stays
    if (pragma(db, "ROLLBACK") != 0)
        log_event(LOG_ERROR, "rollback_failed", LOG_STR("error", db->error));
    memcpy(db->error, error, sizeof(error));
}

int db_script(struct db *db, const char *sql, char *error, size_t error_size)
{
    int err = 0;
    while (err == 0 && *sql) {
        sqlite3_stmt *handle = NULL;
        const char *tail = NULL;
        int code = sqlite3_prepare_v3(db->handle, sql, -1, 0, &handle, &tail);
        while (code == SQLITE_OK && handle && (code = sqlite3_step(handle)) == SQLITE_ROW)
            code = SQLITE_OK;
        if (code != SQLITE_OK && code != SQLITE_DONE) {
            err = fail(db, code);
            snprintf(error, error_size, "%s", db->error);
        }
        sqlite3_finalize(handle);
        sql = tail;
    }
    return err;
}

int db_backup(struct db *db, const char *to_path, char *error, size_t error_size)
{
    sqlite3 *to = NULL;
    int err = create_file(to_path, error, error_size);
    if (err)
        return err;
    int code = sqlite3_open_v2(to_path, &to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (code == SQLITE_OK) {
        sqlite3_backup *backup = sqlite3_backup_init(to, "main", db->handle, "main");
        code = backup ? sqlite3_backup_step(backup, -1) : sqlite3_errcode(to);
        if (backup && sqlite3_backup_finish(backup) == SQLITE_OK && code == SQLITE_DONE)
            code = SQLITE_OK;
    }
    if (code != SQLITE_OK) {
        snprintf(error, error_size, "%s: %s", to_path, to ? sqlite3_errmsg(to) : "out of memory");
        err = err_of(code);
    }
    sqlite3_close(to);
    if (err)
        unlink(to_path);
    return err;
}

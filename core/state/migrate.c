#include "state/migrate.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "codec/secret.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define FILE_MAX (1 << 20)
#define FILES_MAX 1000

struct files {
    char *names[FILES_MAX];
    size_t count;
};

// 0001_name.sql
static bool is_migration(const char *name)
{
    struct slice text = slice_str(name);
    for (int i = 0; i < 4; i++)
        if (!isdigit((unsigned char)name[i]))
            return false;
    return name[4] == '_' && slice_ends(text, ".sql");
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_files(struct files *files)
{
    for (size_t i = 0; i < files->count; i++)
        free(files->names[i]);
    free(files);
}

static int list_files(const char *path, struct files **out, char *error, size_t error_size)
{
    DIR *dir = opendir(path);
    struct files *files = calloc(1, sizeof(*files));
    if (!dir || !files) {
        snprintf(error, error_size, "%s: %s", path, dir ? "out of memory" : strerror(errno));
        if (dir)
            closedir(dir);
        free(files);
        return dir ? GW_ENOMEM : GW_EIO;
    }
    int err = 0;
    for (struct dirent *entry; (entry = readdir(dir)) && err == 0;) {
        if (!is_migration(entry->d_name))
            continue;
        if (files->count == FILES_MAX || !(files->names[files->count] = strdup(entry->d_name)))
            err = GW_ENOMEM;
        else
            files->count++;
    }
    closedir(dir);
    if (err) {
        snprintf(error, error_size, "%s: too many files", path);
        free_files(files);
        return err;
    }
    qsort(files->names, files->count, sizeof(files->names[0]), by_name);
    *out = files;
    return 0;
}

static int read_text(const char *dir, const char *name, struct buf *out, char *error,
                     size_t error_size)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int err = fd < 0 ? GW_EIO : 0;
    while (err == 0) {
        char *room = buf_room(out, 65536);
        ssize_t len = room ? read(fd, room, 65536) : -1;
        if (len > 0)
            buf_grew(out, (size_t)len);
        if (len == 0)
            break;
        if (len < 0 || out->len > FILE_MAX)
            err = len < 0 ? GW_EIO : GW_ETOOBIG;
    }
    if (err == 0)
        err = buf_append_char(out, '\0');
    if (err)
        snprintf(error, error_size, "%s: %s", path,
                 err == GW_EIO ? strerror(errno) : gw_err_name(err));
    if (fd >= 0)
        close(fd);
    return err;
}

static bool has_table(struct db *db, struct arena *arena)
{
    struct db_rows rows = {0};
    return db_run(db,
                  SLICE_LIT("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND "
                            "name = 'schema_migrations'"),
                  NULL, 0, arena, 1, &rows) == 0 &&
           rows.row_count == 1;
}

static int read_applied(struct db *db, const char *set, struct arena *arena, struct db_rows *rows)
{
    struct db_value args[] = {DB_TEXT_VALUE(slice_str(set))};
    *rows = (struct db_rows){0};
    if (!db || !has_table(db, arena))
        return 0;
    return db_run(db,
                  SLICE_LIT("SELECT name, sha256, applied_ms FROM schema_migrations "
                            "WHERE set_name = ? ORDER BY name"),
                  args, 1, arena, FILES_MAX, rows);
}

static const struct db_value *applied_row(const struct db_rows *rows, const char *name)
{
    for (size_t i = 0; i < rows->row_count; i++)
        if (slice_is(rows->values[i * 3].bytes, name))
            return &rows->values[i * 3];
    return NULL;
}

static int record(struct db *db, const char *set, const char *name, const struct sha256 *hash)
{
    struct db_value args[] = {
        DB_TEXT_VALUE(slice_str(set)),
        DB_TEXT_VALUE(slice_str(name)),
        DB_BLOB_VALUE(slice_of((const char *)hash->bytes, sizeof(hash->bytes))),
        DB_INT_VALUE(clock_wall_ms()),
    };
    return db_run(db,
                  SLICE_LIT("INSERT INTO schema_migrations (set_name, name, sha256, applied_ms) "
                            "VALUES (?, ?, ?, ?)"),
                  args, 4, NULL, 0, NULL);
}

static int apply_one(struct db *db, const char *set, const char *name, struct slice plugin,
                     const char *sql, const struct sha256 *hash, char *error, size_t error_size)
{
    char reason[256] = "";
    int err = db_begin(db, true);
    if (err == 0) {
        db_restrict(db, plugin, 0);
        err = db_script(db, sql, reason, sizeof(reason));
        db_restrict(db, SLICE_NONE, 0);
    }
    if (err == 0)
        err = record(db, set, name, hash);
    if (err == 0)
        err = db_commit(db);
    if (err == 0) {
        log_event(LOG_INFO, "migration_applied", LOG_STR("set", set), LOG_STR("name", name));
        return 0;
    }
    if (!reason[0])
        snprintf(reason, sizeof(reason), "%s", db_error(db));
    snprintf(error, error_size, "migration %s/%s: %s", set, name, reason);
    db_rollback(db);
    return err;
}

static int apply_files(struct db *db, const char *set, const char *dir, struct slice plugin,
                       const struct files *files, const struct db_rows *applied, char *error,
                       size_t error_size)
{
    for (size_t i = 0; i < files->count; i++) {
        const char *name = files->names[i];
        const struct db_value *row = applied_row(applied, name);
        struct buf sql = BUF_INIT(0);
        struct sha256 hash;
        int err = read_text(dir, name, &sql, error, error_size);
        if (err == 0)
            err = secret_sha256(slice_of(buf_slice(&sql).ptr, sql.len - 1), &hash);
        if (err == 0 && row &&
            !slice_eq(row[1].bytes, slice_of((const char *)hash.bytes, sizeof(hash.bytes)))) {
            snprintf(error, error_size,
                     "migration %s/%s was changed after it had been applied; restore the file", set,
                     name);
            err = GW_ECORRUPT;
        }
        if (err == 0 && !row)
            err = apply_one(db, set, name, plugin, buf_slice(&sql).ptr, &hash, error, error_size);
        buf_free(&sql);
        if (err)
            return err;
    }
    return 0;
}

int migrate_apply(struct db *db, const char *set, const char *dir, struct slice plugin, char *error,
                  size_t error_size)
{
    struct files *files = NULL;
    struct db_rows applied = {0};
    struct arena *arena = arena_new(4096);
    if (!arena) {
        snprintf(error, error_size, "out of memory");
        return GW_ENOMEM;
    }
    int err = list_files(dir, &files, error, error_size);
    if (err) {
        arena_free(arena);
        return err;
    }
    err = db_run(db,
                 SLICE_LIT("CREATE TABLE IF NOT EXISTS schema_migrations (set_name TEXT NOT NULL, "
                           "name TEXT NOT NULL, sha256 BLOB NOT NULL, applied_ms INTEGER NOT "
                           "NULL, PRIMARY KEY (set_name, name)) STRICT"),
                 NULL, 0, NULL, 0, NULL);
    if (err == 0)
        err = read_applied(db, set, arena, &applied);
    if (err)
        snprintf(error, error_size, "migrations of %s: %s", set, db_error(db));
    for (size_t i = 0; i < applied.row_count && err == 0; i++) {
        struct slice name = applied.values[i * 3].bytes;
        bool is_known = false;
        for (size_t k = 0; k < files->count && !is_known; k++)
            is_known = slice_is(name, files->names[k]);
        if (!is_known) {
            snprintf(error, error_size,
                     "migration %s/%.*s is applied but unknown here: the database belongs to a "
                     "newer version",
                     set, SLICE_FMT(name));
            err = GW_ECORRUPT;
        }
    }
    if (err == 0)
        err = apply_files(db, set, dir, plugin, files, &applied, error, error_size);
    free_files(files);
    arena_free(arena);
    return err;
}

int migrate_check_shared(struct db *db, const char *set, const char *dir, char *error,
                         size_t error_size)
{
    struct files *files = NULL;
    struct db_rows applied = {0};
    struct arena *arena = arena_new(4096);
    int err = arena ? list_files(dir, &files, error, error_size) : GW_ENOMEM;
    if (err == 0)
        err = read_applied(db, set, arena, &applied);
    for (size_t i = 0; files && i < files->count && err == 0; i++) {
        struct buf sql = BUF_INIT(0);
        if (!applied_row(&applied, files->names[i]))
            err = read_text(dir, files->names[i], &sql, error, error_size);
        if (err == 0 && slice_starts(buf_slice(&sql), "-- exclusive\n")) {
            snprintf(error, error_size,
                     "migration %s/%s cannot be applied while another process uses the database: "
                     "stop the gateway and start it again",
                     set, files->names[i]);
            err = GW_EBUSY;
        }
        buf_free(&sql);
    }
    if (files)
        free_files(files);
    arena_free(arena);
    return err;
}

int migrate_status(struct db *db, const char *set, const char *dir, struct arena *arena,
                   struct migrate_list *list, char *error, size_t error_size)
{
    struct files *files = NULL;
    struct db_rows applied;
    int err = list_files(dir, &files, error, error_size);
    if (err)
        return err;
    err = read_applied(db, set, arena, &applied);
    if (err)
        snprintf(error, error_size, "migrations of %s: %s", set, db ? db_error(db) : "");
    for (size_t i = 0; i < files->count && err == 0; i++) {
        if (list->count == list->capacity) {
            size_t capacity = list->capacity ? list->capacity * 2 : 32;
            struct migration_status *items = arena_alloc(arena, capacity * sizeof(*items));
            if (!items) {
                err = GW_ENOMEM;
                break;
            }
            if (list->count)
                memcpy(items, list->items, list->count * sizeof(*items));
            list->items = items;
            list->capacity = capacity;
        }
        const struct db_value *row = applied_row(&applied, files->names[i]);
        struct migration_status *item = &list->items[list->count++];
        item->set = arena_copy(arena, slice_str(set));
        item->name = arena_copy(arena, slice_str(files->names[i]));
        item->is_applied = row != NULL;
        item->applied_ms = row ? row[2].integer : 0;
        list->pending += !row;
        if (!item->set.ptr || !item->name.ptr)
            err = GW_ENOMEM;
    }
    free_files(files);
    return err;
}

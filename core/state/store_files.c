// The store's files: where they are, who owns them, how they come to be. A database is created
// under a name of its own and renamed when it is complete, so a file that exists and is empty,
// foreign or cut is always an error and never taken for a new one.
#include "base/log.h"
#include "state/migrate.h"
#include "state/store_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define APPLICATION_ID 0x4d470000 // "MG", then the file's number
#define QUICK_CHECK_MAX (64 << 20)

const char *store_set_name(enum store_file file)
{
    static const char *const names[] = {"main", "logs", "journal"};
    return names[file];
}

void store_set_dir(const char *migrations_dir, enum store_file file, char *out, size_t size)
{
    snprintf(out, size, "%s/%s", migrations_dir, store_set_name(file));
}

int store_db_flags(const struct store *store)
{
    return slice_is(store->conf->durability, "power") ? DB_OPEN_FULL_SYNC : 0;
}

int store_find_paths(struct store *store, const struct conf *conf, char *error, size_t error_size)
{
    struct slice path;
    int err = conf_database_path(conf, &path, error, error_size);
    if (err)
        return err;
    if (path.len > 3800) {
        snprintf(error, error_size, "DATABASE_URL: the path is too long");
        return GW_EINVAL;
    }
    struct slice stem = path;
    if (slice_ends(stem, ".db"))
        stem.len -= 3;
    store->paths[STORE_MAIN] = strndup(path.ptr, path.len);
    if (asprintf(&store->paths[STORE_LOGS], "%.*s-logs.db", SLICE_FMT(stem)) < 0)
        store->paths[STORE_LOGS] = NULL;
    if (asprintf(&store->paths[STORE_JOURNAL], "%.*s-journal.db", SLICE_FMT(stem)) < 0)
        store->paths[STORE_JOURNAL] = NULL;
    if (asprintf(&store->lock_path, "%.*s.lock", SLICE_FMT(path)) < 0)
        store->lock_path = NULL;
    if (!store->paths[STORE_MAIN] || !store->paths[STORE_LOGS] || !store->paths[STORE_JOURNAL] ||
        !store->lock_path) {
        snprintf(error, error_size, "out of memory");
        return GW_ENOMEM;
    }
    return 0;
}

// Makes the folders of a file's path, 0700.
static int make_folders(const char *path, char *error, size_t error_size)
{
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s", path);
    for (char *at = folder + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
            snprintf(error, error_size, "%s: %s", folder, strerror(errno));
            return GW_EIO;
        }
        *at = '/';
    }
    return 0;
}

int store_take_lock(struct store *store, char *error, size_t error_size)
{
    int err = make_folders(store->lock_path, error, error_size);
    if (err)
        return err;
    store->lock_fd = open(store->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (store->lock_fd < 0) {
        snprintf(error, error_size, "%s: %s", store->lock_path, strerror(errno));
        return GW_EIO;
    }
    char text[32] = "";
    // A predecessor's descriptor holds the lock already. One of another file (the new configuration
    // names another database) is of no use.
    struct stat given, own;
    if (store->given_lock_fd >= 0 && fstat(store->given_lock_fd, &given) == 0 &&
        fstat(store->lock_fd, &own) == 0 && given.st_dev == own.st_dev &&
        given.st_ino == own.st_ino) {
        close(store->lock_fd);
        store->lock_fd = store->given_lock_fd;
        store->given_lock_fd = -1;
        atomic_store(&store->is_shared, true);
    }
    if (flock(store->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        ssize_t len = read(store->lock_fd, text, sizeof(text) - 1);
        text[len > 0 ? len : 0] = '\0';
        text[strcspn(text, "\n")] = '\0';
        snprintf(error, error_size, "%s is in use by another process (%s)",
                 store->paths[STORE_MAIN], text[0] ? text : "unknown");
        close(store->lock_fd);
        store->lock_fd = -1;
        return GW_EBUSY;
    }
    store_sign_lock(store);
    return 0;
}

void store_sign_lock(struct store *store)
{
    char text[32];
    int len = snprintf(text, sizeof(text), "pid %ld\n", (long)getpid());
    if (ftruncate(store->lock_fd, 0) != 0 || pwrite(store->lock_fd, text, (size_t)len, 0) != len)
        log_event(LOG_WARN, "lock_file_not_written", LOG_STR("path", store->lock_path));
}

void store_drop_lock(struct store *store)
{
    // The file stays: removing it would race with another opener. After an upgrade the other
    // process's descriptor keeps the lock.
    if (store->lock_fd >= 0)
        close(store->lock_fd);
    if (store->given_lock_fd >= 0)
        close(store->given_lock_fd);
    store->lock_fd = store->given_lock_fd = -1;
}

static uint32_t big_endian(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static int damaged(const char *path, const char *what, char *error, size_t error_size)
{
    snprintf(error, error_size, "%s: %s; restore it from a backup, or move it away to start anew",
             path, what);
    return GW_ECORRUPT;
}

// What can be said of a file before SQLite touches it.
static int check_head(const char *path, off_t *size, char *error, size_t error_size)
{
    unsigned char head[100];
    struct stat info, wal;
    char wal_path[4200];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0) {
        snprintf(error, error_size, "%s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return GW_EIO;
    }
    ssize_t len = pread(fd, head, sizeof(head), 0);
    close(fd);
    *size = info.st_size;
    if (info.st_size == 0)
        return damaged(path, "the file is empty", error, error_size);
    if (len < (ssize_t)sizeof(head) || memcmp(head, "SQLite format 3", 16) != 0)
        return damaged(path, "this is no database", error, error_size);
    snprintf(wal_path, sizeof(wal_path), "%s-wal", path);
    bool has_wal = stat(wal_path, &wal) == 0 && wal.st_size > 0;
    uint32_t page = (uint32_t)head[16] << 8 | head[17], pages = big_endian(head + 28);
    if (page == 1)
        page = 65536;
    if (!has_wal && (off_t)page * pages > info.st_size)
        return damaged(path, "the file is cut short", error, error_size);
    return 0;
}

static int on_text(void *user, const struct db_value *row, size_t count)
{
    char *text = user;
    (void)count;
    snprintf(text, 200, "%.*s", (int)(row[0].bytes.len > 199 ? 199 : row[0].bytes.len),
             row[0].bytes.ptr);
    return GW_ECANCELLED; // the first is enough
}

static int on_number(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    *(int64_t *)user = row[0].integer;
    return 0;
}

static int check_content(struct db *db, enum store_file file, const char *path, off_t size,
                         char *error, size_t error_size)
{
    int64_t id = 0;
    char text[200] = "ok";
    int err = db_each(db, SLICE_LIT("PRAGMA application_id"), NULL, 0, on_number, &id);
    if (err == 0 && id != APPLICATION_ID + (int)file)
        return damaged(path, "this database is not Moongate's", error, error_size);
    if (err == 0 && size <= QUICK_CHECK_MAX) {
        err = db_each(db, SLICE_LIT("PRAGMA quick_check(1)"), NULL, 0, on_text, text);
        if (err == GW_ECANCELLED)
            err = 0;
    }
    if (err == 0 && strcmp(text, "ok") == 0)
        return 0;
    return damaged(path, err ? db_error(db) : text, error, error_size);
}

static int back_up(struct store *store, struct db *db, const char *dir, char *error,
                   size_t error_size)
{
    struct migrate_list list = {0};
    struct arena *arena = arena_new(4096);
    if (!arena)
        return GW_ENOMEM;
    int err = migrate_status(db, "main", dir, arena, &list, error, error_size);
    char path[4300];
    const char *version = "0000";
    for (size_t i = 0; i < list.count; i++)
        if (list.items[i].is_applied)
            version = list.items[i].name.ptr;
    if (err == 0 && list.pending) {
        snprintf(path, sizeof(path), "%s.bak-%.4s", store->paths[STORE_MAIN], version);
        unlink(path);
        err = db_backup(db, path, error, error_size);
        if (err == 0)
            log_event(LOG_INFO, "database_backed_up", LOG_STR("path", path));
    }
    arena_free(arena);
    return err;
}

static int create_file(struct store *store, enum store_file file, char *error, size_t error_size)
{
    char dir[4096], path[4300], side[4400];
    static const char *const ids[] = {
        "PRAGMA application_id = 0x4d470000",
        "PRAGMA application_id = 0x4d470001",
        "PRAGMA application_id = 0x4d470002",
    };
    static const char *const sides[] = {"", "-wal", "-shm"};
    struct db *db = NULL;
    store_set_dir(store->migrations_dir, file, dir, sizeof(dir));
    snprintf(path, sizeof(path), "%s.new", store->paths[file]);
    for (size_t i = 0; i < 3; i++) {
        snprintf(side, sizeof(side), "%s%s", path, sides[i]);
        unlink(side); // left by a start that was cut off
    }
    int err = db_open(path, DB_OPEN_CREATE | DB_OPEN_FULL_SYNC, &db, error, error_size);
    if (err)
        return err;
    err = db_run(db, slice_str(ids[file]), NULL, 0, NULL, 0, NULL);
    if (err)
        snprintf(error, error_size, "%s: %s", path, db_error(db));
    if (err == 0)
        err = migrate_apply(db, store_set_name(file), dir, SLICE_NONE, error, error_size);
    db_close(db); // the last connection folds the -wal file in
    if (err == 0 && rename(path, store->paths[file]) != 0) {
        snprintf(error, error_size, "%s: %s", store->paths[file], strerror(errno));
        err = GW_EIO;
    }
    return err;
}

static int check_file(struct store *store, enum store_file file, char *error, size_t error_size)
{
    char dir[4096];
    struct db *db = NULL;
    off_t size = 0;
    const char *path = store->paths[file];
    store_set_dir(store->migrations_dir, file, dir, sizeof(dir));
    int err = check_head(path, &size, error, error_size);
    if (err == 0)
        err = db_open(path, store_db_flags(store), &db, error, error_size);
    if (err == GW_ECORRUPT && !strstr(error, "restore"))
        return damaged(path, "this is no database, or it is damaged", error, error_size);
    if (err)
        return err;
    err = check_content(db, file, path, size, error, error_size);
    if (err == 0 && file == STORE_MAIN)
        err = back_up(store, db, dir, error, error_size);
    if (err == 0 && atomic_load(&store->is_shared))
        err = migrate_check_shared(db, store_set_name(file), dir, error, error_size);
    if (err == 0)
        err = migrate_apply(db, store_set_name(file), dir, SLICE_NONE, error, error_size);
    db_close(db);
    return err;
}

int store_prepare_files(struct store *store, char *error, size_t error_size)
{
    bool exists[STORE_FILES];
    for (int i = 0; i < STORE_FILES; i++)
        exists[i] = access(store->paths[i], F_OK) == 0;
    if (!exists[STORE_MAIN] && (exists[STORE_LOGS] || exists[STORE_JOURNAL])) {
        snprintf(error, error_size,
                 "%s is missing although %s is there; restore it from a backup, or move the other "
                 "away to start anew",
                 store->paths[STORE_MAIN],
                 store->paths[exists[STORE_LOGS] ? STORE_LOGS : STORE_JOURNAL]);
        return GW_ECORRUPT;
    }
    // Main comes first: a start that is cut off after it finds the others missing and makes them.
    for (int i = 0; i < STORE_FILES; i++) {
        if (!exists[i] && exists[STORE_MAIN])
            log_event(LOG_WARN, "database_recreated", LOG_STR("path", store->paths[i]));
        int err = exists[i] ? check_file(store, (enum store_file)i, error, error_size)
                            : create_file(store, (enum store_file)i, error, error_size);
        if (err)
            return err;
    }
    return 0;
}

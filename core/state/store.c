// Opening and closing the store, in order: lock, files, lease, import, memory, journal, lanes.
#include "state/store.h"
#include "base/clock.h"
#include "base/log.h"
#include "state/migrate.h"
#include "state/store_impl.h"
#include "state/upstream_row.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BEHIND_MS 1000
#define OWNERS_KEPT 1000

static int on_number(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    *(int64_t *)user = row[0].integer;
    return 0;
}

static int note_owner(struct store *store, struct db *db)
{
    struct db_value own[] = {DB_INT_VALUE(store->owner_epoch), DB_INT_VALUE(getpid()),
                             DB_INT_VALUE(clock_wall_ms())};
    int err =
        db_run(db, SLICE_LIT("INSERT INTO owners (owner, pid, started_ms) VALUES (?1, ?2, ?3)"),
               own, 3, NULL, 0, NULL);
    // Under the lock alone nobody else lives.
    struct db_value dead[] = {DB_INT_VALUE(clock_wall_ms()), DB_INT_VALUE(store->owner_epoch)};
    if (err == 0 && !atomic_load(&store->is_shared))
        err = db_run(db,
                     SLICE_LIT("UPDATE owners SET ended_ms = ?1, how = 'died' "
                               "WHERE ended_ms IS NULL AND owner < ?2"),
                     dead, 2, NULL, 0, NULL);
    struct db_value old[] = {DB_INT_VALUE(store->owner_epoch - OWNERS_KEPT)};
    if (err == 0)
        err = db_run(db, SLICE_LIT("DELETE FROM owners WHERE owner < ? AND ended_ms IS NOT NULL"),
                     old, 1, NULL, 0, NULL);
    return err;
}

// The number of this ownership goes up with each opening and never comes again: facts of an
// exchange carry it, so that what a dead owner left open can be told from what is alive.
static int take_lease(struct store *store, struct db *db)
{
    char owner[64];
    snprintf(owner, sizeof(owner), "pid %ld", (long)getpid());
    struct db_value args[] = {DB_TEXT_VALUE(slice_str(owner)), DB_INT_VALUE(clock_wall_ms())};
    int err = db_run(db,
                     SLICE_LIT("INSERT INTO leases (name, owner_epoch, owner, is_held, taken_ms) "
                               "VALUES ('process', 1, ?1, 1, ?2) ON CONFLICT (name) DO UPDATE SET "
                               "owner_epoch = owner_epoch + 1, owner = ?1, is_held = 1, "
                               "taken_ms = ?2"),
                     args, 2, NULL, 0, NULL);
    if (err == 0)
        err = db_each(db, SLICE_LIT("SELECT owner_epoch FROM leases WHERE name = 'process'"), NULL,
                      0, on_number, &store->owner_epoch);
    return err ? err : note_owner(store, db);
}

struct owner_job {
    struct store_job job;
    int64_t owner;
    const char *how;
};

// After an upgrade the lease is the successor's: only the own one is given back.
static int end_owner(struct db *db, struct store_job *job)
{
    const struct owner_job *end = (struct owner_job *)job;
    struct db_value lease[] = {DB_INT_VALUE(end->owner)};
    struct db_value owner[] = {DB_INT_VALUE(clock_wall_ms()), DB_TEXT_VALUE(slice_str(end->how)),
                               DB_INT_VALUE(end->owner)};
    int err = db_run(
        db, SLICE_LIT("UPDATE leases SET is_held = 0 WHERE name = 'process' AND owner_epoch = ?"),
        lease, 1, NULL, 0, NULL);
    return err ? err
               : db_run(db,
                        SLICE_LIT("UPDATE owners SET ended_ms = ?1, how = ?2 "
                                  "WHERE owner = ?3 AND ended_ms IS NULL"),
                        owner, 3, NULL, 0, NULL);
}

static void free_owner_job(struct store_job *job)
{
    if (job->err)
        log_event(LOG_WARN, "owner_not_ended",
                  LOG_INT("owner_epoch", ((struct owner_job *)job)->owner),
                  LOG_STR("error", job->error));
    free(job);
}

// Asynchronous; store_close waits for it with its lanes.
static void submit_end(struct store *store, int64_t owner, const char *how)
{
    struct owner_job *end = calloc(1, sizeof(*end));
    if (!end)
        return;
    end->job = (struct store_job){.run = end_owner, .done = free_owner_job, .lane = STORE_WRITE};
    end->owner = owner;
    end->how = how;
    if (store_submit(store, &end->job) != 0)
        free(end);
}

void store_owner_ended(struct store *store, int64_t owner)
{
    // A predecessor of another database may have had the same number there.
    if (owner != store->owner_epoch)
        submit_end(store, owner, "died"); // unless it said itself that it stopped
}

void store_set_shared(struct store *store, bool is_shared)
{
    struct lane *lane = &store->lanes[STORE_WRITE];
    if (!is_shared && atomic_load(&store->is_shared) && store->lock_fd >= 0)
        store_sign_lock(store); // a successor that did not come up had written its own
    atomic_store(&store->is_shared, is_shared);
    atomic_store(&store->must_look, true);
    if (store->journal)
        journal_set_shared(store->journal, is_shared);
    if (!lane->is_started)
        return;
    pthread_mutex_lock(&lane->mutex);
    pthread_cond_signal(&lane->wake);
    pthread_mutex_unlock(&lane->mutex);
}

void store_hand_over(struct store *store)
{
    if (store->journal)
        journal_hand_over(store->journal);
}

int store_lock_fd(const struct store *store)
{
    return store->lock_fd;
}

static int make_memory(struct store *store)
{
    store->catalogue = catalogue_ref_new(store->epoch);
    store->directory = directory_new(store->epoch);
    store->health = health_new();
    return store->catalogue && store->directory && store->health ? 0 : GW_ENOMEM;
}

static int prepare_main(struct store *store, char *error, size_t error_size)
{
    struct db *db = NULL;
    int flags = store->is_readonly ? DB_OPEN_READONLY : store_db_flags(store);
    int err = db_open(store->paths[STORE_MAIN], flags, &db, error, error_size);
    if (err)
        return err;
    error[0] = '\0';
    if (!store->is_tool) {
        err = db_begin(db, true);
        if (err == 0)
            err = take_lease(store, db);
        if (err == 0)
            err = db_commit(db);
        if (err)
            db_rollback(db);
    }
    if (err == 0 && !store->is_readonly)
        err = upstream_import(db, store->conf, store->fernet, error, error_size);
    if (err == 0)
        err = make_memory(store);
    if (err == 0)
        err = store_load_all(store, db);
    if (err && !error[0])
        snprintf(error, error_size, "%s: %s", store->paths[STORE_MAIN],
                 db_error(db)[0] ? db_error(db) : gw_err_name(err));
    db_close(db);
    return err;
}

static int open_journal(struct store *store, char *error, size_t error_size)
{
    const struct journal_options options = {
        .journal_path = store->paths[STORE_JOURNAL],
        .main_path = store->paths[STORE_MAIN],
        .logs_path = store->paths[STORE_LOGS],
        .is_durable = store_db_flags(store) & DB_OPEN_FULL_SYNC,
        .main_mutex = &store->main_mutex,
        .logs_mutex = &store->logs_mutex,
        .owner = store->owner_epoch,
        .is_shared = atomic_load(&store->is_shared),
    };
    return journal_open(&options, &store->journal, error, error_size);
}

static int open_all(struct store *store, char *error, size_t error_size)
{
    int err = store_find_paths(store, store->conf, error, error_size);
    if (err == 0)
        err = store_take_lock(store, error, error_size);
    if (err == GW_EBUSY && store->is_tool) {
        // Beside a running gateway a tool may look, not write.
        store->is_readonly = true;
        err = 0;
    }
    if (err == 0 && !store->is_readonly)
        err = store_prepare_files(store, error, error_size);
    if (err == 0)
        err = prepare_main(store, error, error_size);
    if (err == 0 && !store->is_readonly)
        err = open_journal(store, error, error_size);
    if (err == 0)
        err = store_start_lanes(store, error, error_size);
    return err;
}

int store_open(const struct store_options *options, struct store **out, char *error,
               size_t error_size)
{
    struct store *store = calloc(1, sizeof(*store));
    if (!store) {
        snprintf(error, error_size, "out of memory");
        return GW_ENOMEM;
    }
    store->conf = options->conf;
    store->fernet = options->fernet;
    store->epoch = options->epoch;
    store->is_tool = options->is_tool;
    store->lock_fd = -1;
    store->given_lock_fd = options->lock_fd ? *options->lock_fd : -1;
    store->migrations_dir = strdup(options->migrations_dir);
    pthread_mutex_init(&store->main_mutex, NULL);
    pthread_mutex_init(&store->logs_mutex, NULL);
    uint64_t start_ms = clock_boot_ms();
    int err = store->migrations_dir ? open_all(store, error, error_size) : GW_ENOMEM;
    if (err) {
        store_close(store);
        return err;
    }
    log_event(LOG_INFO, "store_open", LOG_STR("path", store->paths[STORE_MAIN]),
              LOG_INT("owner_epoch", store->owner_epoch),
              LOG_INT("keys", directory_key_count(store->directory)),
              LOG_INT("duration_ms", clock_boot_ms() - start_ms));
    *out = store;
    return 0;
}

struct waiting_job {
    struct store_job job;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool is_done;
};

static void wake_waiter(struct store_job *job)
{
    struct waiting_job *waiting = (struct waiting_job *)job;
    pthread_mutex_lock(&waiting->mutex);
    waiting->is_done = true;
    pthread_cond_signal(&waiting->changed);
    pthread_mutex_unlock(&waiting->mutex);
}

int store_run(struct store *store, enum store_lane lane,
              int (*run)(struct db *db, struct store_job *job))
{
    struct waiting_job waiting = {.job = {.run = run, .done = wake_waiter, .lane = lane}};
    pthread_mutex_init(&waiting.mutex, NULL);
    pthread_cond_init(&waiting.changed, NULL);
    int err = store_submit(store, &waiting.job);
    pthread_mutex_lock(&waiting.mutex);
    while (err == 0 && !waiting.is_done)
        pthread_cond_wait(&waiting.changed, &waiting.mutex);
    pthread_mutex_unlock(&waiting.mutex);
    pthread_cond_destroy(&waiting.changed);
    pthread_mutex_destroy(&waiting.mutex);
    return err ? err : waiting.job.err;
}

void store_close(struct store *store)
{
    if (!store)
        return;
    journal_close(store->journal);
    if (store->lanes[STORE_WRITE].is_started && !store->is_tool)
        submit_end(store, store->owner_epoch, "stopped");
    store_stop_lanes(store);
    catalogue_ref_free(store->catalogue);
    directory_free(store->directory);
    // Slots may still be named by retired catalogues: nobody reads those any more.
    (void)epoch_reclaim(store->epoch);
    health_free(store->health);
    store_drop_lock(store);
    pthread_mutex_destroy(&store->main_mutex);
    pthread_mutex_destroy(&store->logs_mutex);
    for (int i = 0; i < STORE_FILES; i++)
        free(store->paths[i]);
    free(store->lock_path);
    free(store->migrations_dir);
    free(store);
}

struct catalogue_ref *store_catalogue(struct store *store)
{
    return store->catalogue;
}

struct directory *store_directory(struct store *store)
{
    return store->directory;
}

struct health *store_health(struct store *store)
{
    return store->health;
}

struct journal *store_journal(struct store *store)
{
    return store->journal;
}

struct fernet *store_fernet(struct store *store)
{
    return store->fernet;
}

int64_t store_owner_epoch(const struct store *store)
{
    return store->owner_epoch;
}

bool store_is_healthy(struct store *store, char *why, size_t why_size)
{
    struct journal_view view = {0};
    int write_err = atomic_load(&store->write_err);
    if (store->journal)
        journal_read_view(store->journal, &view);
    if (view.is_sick)
        snprintf(why, why_size, "the journal cannot be written");
    else if (view.oldest_ms > BEHIND_MS)
        snprintf(why, why_size, "the journal is %u ms behind", view.oldest_ms);
    else if (view.behind_ms > BEHIND_MS)
        snprintf(why, why_size, "the applier has been stuck for %u ms", view.behind_ms);
    else if (write_err)
        snprintf(why, why_size, "the database cannot be written: %s", gw_err_name(write_err));
    else
        return true;
    return false;
}

static int list_migrations(char *const paths[STORE_FILES], const char *migrations_dir,
                           struct arena *arena, struct migration_status **out, size_t *count,
                           char *error, size_t error_size)
{
    struct migrate_list list = {0};
    for (int i = 0; i < STORE_FILES; i++) {
        struct db *db = NULL;
        char dir[4096];
        int err = 0;
        if (access(paths[i], F_OK) == 0)
            err = db_open(paths[i], DB_OPEN_READONLY, &db, error, error_size);
        store_set_dir(migrations_dir, (enum store_file)i, dir, sizeof(dir));
        if (err == 0)
            err = migrate_status(db, store_set_name((enum store_file)i), dir, arena, &list, error,
                                 error_size);
        db_close(db);
        if (err)
            return err;
    }
    *out = list.items;
    *count = list.count;
    return 0;
}

int store_migration_status(struct store *store, struct arena *arena, struct migration_status **out,
                           size_t *count)
{
    char error[256] = "";
    int err = list_migrations(store->paths, store->migrations_dir, arena, out, count, error,
                              sizeof(error));
    if (err)
        log_event(LOG_ERROR, "migration_status_failed", LOG_STR("error", error));
    return err;
}

int store_peek_migrations(const struct conf *conf, const char *migrations_dir, struct arena *arena,
                          struct migration_status **out, size_t *count, char *error,
                          size_t error_size)
{
    struct store paths = {0};
    int err = store_find_paths(&paths, conf, error, error_size);
    if (err == 0)
        err = list_migrations(paths.paths, migrations_dir, arena, out, count, error, error_size);
    for (int i = 0; i < STORE_FILES; i++)
        free(paths.paths[i]);
    free(paths.lock_path);
    return err;
}

static bool is_plugin_name(struct slice name)
{
    for (size_t i = 0; i < name.len; i++)
        if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789_", name.ptr[i]) || !name.ptr[i])
            return false;
    return name.len > 0 && name.len <= 64;
}

int store_migrate_plugin(struct store *store, struct slice plugin, const char *dir, char *error,
                         size_t error_size)
{
    char set[80];
    struct db *db = NULL;
    if (!is_plugin_name(plugin)) {
        snprintf(error, error_size, "a plugin with tables has a name of a-z, 0-9 and _");
        return GW_EINVAL;
    }
    if (store->is_readonly) {
        snprintf(error, error_size, "another process owns the database");
        return GW_EBUSY;
    }
    bool is_shared = atomic_load(&store->is_shared);
    snprintf(set, sizeof(set), "plugin:%.*s", SLICE_FMT(plugin));
    int err = db_open(store->paths[STORE_MAIN], store_db_flags(store), &db, error, error_size);
    if (err)
        return err;
    pthread_mutex_lock(&store->main_mutex);
    if (is_shared)
        err = migrate_check_shared(db, set, dir, error, error_size);
    if (err == 0)
        err = migrate_apply(db, set, dir, plugin, error, error_size);
    pthread_mutex_unlock(&store->main_mutex);
    db_close(db);
    return err;
}

#pragma once
// Where durable state lives: main.db (keys, users, upstreams, wallets, rollups), logs.db (request
// logs), journal.db (facts of exchanges, journal.h); SQLite behind an interface that a second
// backend (PostgreSQL) can implement. Work is done on lanes, threads of the store: one writer for
// main.db and one for logs.db, and readers: one lane for hooks, one for admin and plugin routes, so
// that a slow report never delays a hook. Nothing here runs on a worker; answers are delivered on
// the lane's thread (`done`), which posts to the worker.
//
// A trusted write that inserts into changes(kind, id) is published (catalogue, directory) after its
// commit and before `done`: whoever reads the answer sees the change everywhere (SURFACES §0.6).
#include "base/arena.h"
#include "base/epoch.h"
#include "base/err.h"
#include "codec/fernet.h"
#include "state/catalogue.h"
#include "state/conf.h"
#include "state/db.h"
#include "state/directory.h"
#include "state/health.h"
#include "state/journal.h"
#include <stdint.h>

struct store;

enum store_lane {
    STORE_READ_HOOK,  // main.db, short reads asked by hooks
    STORE_READ_ADMIN, // main.db, routes and CLI
    STORE_WRITE,      // main.db
    STORE_READ_LOGS,  // logs.db, with main.db attached as `state`
    STORE_WRITE_LOGS, // logs.db (retention)
};

struct store_job {
    // Runs on the lane with its connection. On the write lanes it runs inside BEGIN IMMEDIATE …
    // COMMIT; a negative result rolls back.
    int (*run)(struct db *db, struct store_job *job);
    void (*done)(struct store_job *job); // lane thread, after commit and publication
    enum store_lane lane;
    int err;         // of run, or of the commit
    char error[256]; // text, when err is not 0
    struct store_job *next;
};

// Opens the files (creating folder 0700 and files 0600), applies migrations (backup before),
// acquires the process lease (owner epoch; GW_EBUSY when another process holds it), loads the
// catalogue and the directory, recovers the journal, starts the threads.
struct store_options {
    const struct conf *conf;
    struct fernet *fernet;      // borrowed for the store's life
    struct epoch *epoch;        // borrowed
    const char *migrations_dir; // "schema"
    // A command line verb: takes no lease. When a gateway runs, it opens for reading only: no
    // journal (store_journal gives NULL), writes are GW_EBUSY.
    bool is_tool;
    // Opened by the successor in an upgrade: takes over this descriptor of the lock file, which a
    // living process holds the lock by, and is shared from the start. Closed in store_close, also
    // when opening fails. NULL: an ordinary start.
    const int *lock_fd;
};
GW_MUSTCHECK int store_open(const struct store_options *options, struct store **out, char *error,
                            size_t error_size);
// Drains lanes, journal and applier; hands the lease back.
void store_close(struct store *store);
// Upgrade (main/upgrade.c): while two processes use the files, each follows the other's changes and
// journal by looking into the files. Any thread.
void store_set_shared(struct store *store, bool is_shared);
// The successor folds the journal from now on; this process goes on writing it.
void store_hand_over(struct store *store);
// The descriptor that holds the lock; borrowed. -1: none (a tool beside a gateway).
int store_lock_fd(const struct store *store);
// Another process with this number has ended; noted on the writer lane.
void store_owner_ended(struct store *store, int64_t owner);
// Any thread. GW_EFULL: lane's queue is full; the caller keeps the job.
// GW_EBUSY: a write while another process owns the files; GW_ECANCELLED: closing.
GW_MUSTCHECK int store_submit(struct store *store, struct store_job *job);
// Runs a job and waits for it (start, close, tools; never on a worker or a lane).
GW_MUSTCHECK int store_run(struct store *store, enum store_lane lane,
                           int (*run)(struct db *db, struct store_job *job));

struct catalogue_ref *store_catalogue(struct store *store);
struct directory *store_directory(struct store *store);
struct health *store_health(struct store *store);
struct journal *store_journal(struct store *store);
struct fernet *store_fernet(struct store *store);
int64_t store_owner_epoch(const struct store *store);
// Ready to serve: files writable, journal and applier not behind by more than 1 s. why ≥ 160 bytes.
bool store_is_healthy(struct store *store, char *why, size_t why_size);

// Migrations: schema/main/NNNN_name.sql, schema/logs/…, schema/journal/…, and a plugin's own folder
// ("plugin:<name>"), applied in order, each in one transaction, recorded with its SHA-256.
struct migration_status {
    struct slice set;  // "main", "logs", "journal", "plugin:prices"
    struct slice name; // "0001_base.sql"
    bool is_applied;
    int64_t applied_ms;
};
GW_MUSTCHECK int store_migration_status(struct store *store, struct arena *arena,
                                        struct migration_status **out, size_t *count);
// The same without opening a store: files that do not exist count as not migrated.
GW_MUSTCHECK int store_peek_migrations(const struct conf *conf, const char *migrations_dir,
                                       struct arena *arena, struct migration_status **out,
                                       size_t *count, char *error, size_t error_size);
// Plugin migrations: only tables named p_<plugin>_*. Synchronous: call at start or on a helper
// thread, never on a worker.
GW_MUSTCHECK int store_migrate_plugin(struct store *store, struct slice plugin, const char *dir,
                                      char *error, size_t error_size);

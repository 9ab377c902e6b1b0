#pragma once
// What the files of the store share: store.c (open, close), store_files.c (paths, lock, creation,
// checks), store_load.c (directory and publication), store_lane.c (threads). Nobody else includes
// it.
#include "state/store.h"
#include <pthread.h>
#include <stdatomic.h>

#define STORE_LANES 5
#define STORE_QUEUE_MAX 8192

struct lane {
    struct store *store;
    enum store_lane id;
    struct db *db;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct store_job *first, *last;
    size_t count;
    bool is_stopping, is_started;
};

enum store_file { STORE_MAIN, STORE_LOGS, STORE_JOURNAL };
#define STORE_FILES 3

struct store {
    const struct conf *conf;
    struct fernet *fernet;
    struct epoch *epoch;
    char *migrations_dir;
    char *paths[STORE_FILES];
    char *lock_path;
    int lock_fd;       // -1: not held
    int given_lock_fd; // from a predecessor, not yet taken; -1: none
    bool is_tool, is_readonly;
    atomic_bool is_shared; // another process uses the files, too
    atomic_bool must_look; // at the changes feed once more: the other process has gone
    int64_t owner_epoch;
    pthread_mutex_t main_mutex, logs_mutex; // writers of one file inside the process
    struct lane lanes[STORE_LANES];
    struct catalogue_ref *catalogue;
    struct directory *directory;
    struct health *health;
    struct journal *journal;
    // Writer lane:
    int64_t published_seq;
    uint64_t catalogue_version;
    bool is_unpublished;   // a publication failed and is tried again
    _Atomic int write_err; // of the last commit on a write lane
};

// store_files.c
GW_MUSTCHECK int store_find_paths(struct store *store, const struct conf *conf, char *error,
                                  size_t error_size);
GW_MUSTCHECK int store_take_lock(struct store *store, char *error, size_t error_size);
void store_sign_lock(struct store *store); // writes this process's number into the lock file
void store_drop_lock(struct store *store);
// Creates or checks and migrates the three files.
GW_MUSTCHECK int store_prepare_files(struct store *store, char *error, size_t error_size);
// The folder and set of a file's migrations ("schema/main", "main").
const char *store_set_name(enum store_file file);
void store_set_dir(const char *migrations_dir, enum store_file file, char *out, size_t size);
int store_db_flags(const struct store *store);

// store_load.c, with the writer's connection
GW_MUSTCHECK int store_load_all(struct store *store, struct db *db);
// Publishes changes after published_seq.
GW_MUSTCHECK int store_publish(struct store *store, struct db *db);

// store_lane.c
GW_MUSTCHECK int store_start_lanes(struct store *store, char *error, size_t error_size);
void store_stop_lanes(struct store *store);

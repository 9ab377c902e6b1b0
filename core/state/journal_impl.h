#pragma once
// What journal.c (the queue and its thread) and applier.c share. Nobody else includes it.
#include "base/mpsc.h"
#include "state/db.h"
#include "state/journal.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#define JOURNAL_PAYLOAD_MAX (64u << 10)
#define JOURNAL_HEAD 2 // kind, version
#define JOURNAL_TAIL 4 // CRC-32

struct journal_record {
    struct mpsc_node node;
    struct journal_record *next; // of a group
    struct journal_ack *ack;
    uint64_t pushed_ms;
    size_t len;
    char bytes[]; // kind, version, payload, CRC-32
};

// One database that the applier folds into.
struct applier_side {
    const char *name; // row of table applied: "main", "logs"
    struct db *db;
    pthread_mutex_t *mutex;
    _Atomic int64_t applied_seq;
};

struct journal {
    struct mpsc queue;
    sem_t wake;
    sem_t hurry; // somebody waits for the commit: no lingering
    atomic_bool is_stopping, is_sick;
    bool is_final;                     // an fsync failed: sick for good. Journal thread.
    _Atomic uint64_t pushed, finished; // records; finished: committed or failed
    _Atomic uint64_t queued_records, queued_bytes, oldest_ms, commits, quarantined;
    _Atomic int64_t committed_seq;
    int64_t first_seq; // of the table; journal thread
    struct db *db;     // journal thread
    pthread_t thread;

    struct db *reader; // applier
    struct applier_side main, logs;
    _Atomic uint64_t progress_ms; // boot ms of the applier's last step
    pthread_t applier_thread;

    // For whoever waits: the applier for commits, journal_flush for both.
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool is_applier_stopping; // under mutex
};

uint32_t journal_crc32(const void *bytes, size_t len);
// Opens the three connections and reads what is applied.
GW_MUSTCHECK int applier_open(struct journal *journal, const struct journal_options *options,
                              char *error, size_t error_size);
void applier_close_files(struct journal *journal);
void *applier_run(void *journal);

#pragma once
// What journal.c (the queue and its thread) and applier.c share. Nobody else includes it.
#include "base/buf.h"
#include "base/mpsc.h"
#include "state/db.h"
#include "state/journal.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#define JOURNAL_PAYLOAD_MAX (64u << 10)
#define JOURNAL_HEAD 2 // kind, version
#define JOURNAL_TAIL 4 // CRC-32
// A row of the journal holds one record, or several of one commit: this byte and a version, then
// each record after its length (32 bits, little endian). The row's number is its last record's.
#define JOURNAL_GROUP 0xc0
#define JOURNAL_GROUP_VERSION 1
#define JOURNAL_ROW_RECORDS 256
#define JOURNAL_ROW_BYTES (48u << 10)

struct journal_record {
    struct mpsc_node node;
    struct journal_record *next; // of a group
    struct journal_ack *ack;
    uint64_t pushed_ms;
    size_t len;
    char bytes[]; // kind, version, payload, CRC-32
};

// A committed group, kept for the applier so that it need not read the file. When it lags behind by
// more than HANDED_MAX the groups after that are left to the file.
struct journal_group {
    struct journal_group *next;
    int64_t first_seq, last_seq; // no gap between
    size_t bytes;
    struct journal_record *records;
};

// One database that the applier folds into.
struct applier_side {
    const char *name;   // row of table applied: "main", "logs"
    uint32_t gather_ms; // how long records may wait for more when nobody waits for them
    uint64_t since_ms;  // behind since; 0: not. The applier's.
    struct db *db;
    pthread_mutex_t *mutex;
    _Atomic int64_t applied_seq;
};

struct journal {
    struct mpsc queue;
    sem_t wake;
    sem_t hurry; // somebody waits for the commit: no lingering
    atomic_bool is_stopping, is_sick;
    atomic_bool is_shared;      // another process writes, too
    atomic_bool must_look;      // at the file once more: the other process has gone
    atomic_bool is_handed_over; // another process folds
    int64_t owner;
    bool is_final;                     // an fsync failed: sick for good. Journal thread.
    _Atomic uint64_t pushed, finished; // records; finished: committed or failed
    _Atomic uint64_t queued_records, queued_bytes, oldest_ms, commits, quarantined;
    _Atomic int64_t committed_seq;
    int64_t first_seq; // of the table; journal thread
    struct db *db;     // journal thread
    struct buf row;    // the same
    pthread_t thread;

    struct db *reader; // applier
    struct applier_side main, logs;
    _Atomic uint64_t progress_ms; // boot ms of the applier's last step
    pthread_t applier_thread;

    // For whoever waits: the applier for commits, journal_flush for both.
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool is_applier_stopping;                         // under mutex
    struct journal_group *handed_first, *handed_last; // under mutex; taken off by the applier
    size_t handed_bytes;
    atomic_int flushers; // in journal_flush: the applier does not gather
};

void journal_free_records(struct journal_record *record);
uint32_t journal_crc32(const void *bytes, size_t len);
// Opens the three connections and reads what is applied.
GW_MUSTCHECK int applier_open(struct journal *journal, const struct journal_options *options,
                              char *error, size_t error_size);
void applier_close_files(struct journal *journal);
void *applier_run(void *journal);

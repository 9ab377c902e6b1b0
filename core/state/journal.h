#pragma once
// journal.db: one append-only table (seq, blob) of facts, written by one thread in group commits
// (commit what has queued, then the next group), and the applier that folds them exactly once into
// main.db and logs.db (each holds its own applied_seq in the same transaction). A bad record is
// quarantined under a savepoint with an alarm; its group commits. Records of money come with the
// ledger; their kinds are reserved here so that the format need not change.
//
// Two processes may write one journal: while a successor starts and its predecessor drains
// (main/upgrade.c). A group's numbers are therefore taken inside its transaction, after the highest
// that is there. Only one of them should fold: journal_hand_over ends the applier of the one that
// drains; should both run, each batch still is folded once, because the mark is looked at inside
// the transaction that folds.
//
// journal_push may be called while holding a wallet's stripe lock: it only links into a queue, so
// queue order = memory order. Any thread.
#include "base/err.h"
#include "base/id.h"
#include "base/slice.h"
#include "codec/usage.h"
#include <pthread.h>
#include <stdint.h>

struct journal;

enum journal_kind {
    JOURNAL_HOLD = 1,
    JOURNAL_MARK = 2,
    JOURNAL_CHECKPOINT = 3,
    JOURNAL_SETTLE = 4,
    JOURNAL_ADMISSION = 5,
    JOURNAL_LOG = 6,
};

struct journal_ack;
typedef void (*journal_ack_cb)(struct journal_ack *ack, int err); // journal thread, after commit
struct journal_ack { // memory of the caller, untouched until called
    journal_ack_cb on_commit;
    struct journal_ack *next;
};

struct journal_options {
    const char *journal_path, *main_path, *logs_path; // migrated before
    bool is_durable;                                  // "power": synchronous FULL
    // Held by the applier around its transactions: shared with the store's write lanes, so that
    // inside the process nobody waits by polling.
    pthread_mutex_t *main_mutex, *logs_mutex;
    int64_t owner;  // number of this process (store_owner_epoch), kept with each record
    bool is_shared; // as journal_set_shared
};
// Opens the journal, starts the journal thread and the applier, which at once folds what an earlier
// process left. error ≥ 256 bytes.
GW_MUSTCHECK int journal_open(const struct journal_options *options, struct journal **out,
                              char *error, size_t error_size);
// Commits and applies what is queued (at most 60 s for the applier), then ends the threads.
void journal_close(struct journal *journal);

// Another process writes this journal, or none does any more: while one does, the applier looks
// into the file by itself. Any thread.
void journal_set_shared(struct journal *journal, bool is_shared);
// Another process folds from now on: the applier ends after the batch it is at, and nobody waits
// for it any more. What is pushed here is still committed. For good. Any thread.
void journal_hand_over(struct journal *journal);

// Copies the payload (≤ 64 KiB). ack may be NULL. GW_EFULL: the queue holds more than 256 MiB;
// GW_EIO: the journal is sick (disk full, fsync failed): nothing more is accepted.
GW_MUSTCHECK int journal_push(struct journal *journal, enum journal_kind kind, struct slice payload,
                              struct journal_ack *ack);
struct journal_view {
    uint64_t queued_records, queued_bytes;
    uint32_t oldest_ms; // age of the oldest record not yet committed
    int64_t committed_seq, applied_main_seq, applied_logs_seq;
    uint64_t quarantined, commits;
    uint32_t behind_ms; // how long the applier has made no progress although it is behind
    bool is_sick;
};
void journal_read_view(struct journal *journal, struct journal_view *view);
// Blocks until all that was pushed before is committed and applied (tests, close, CLI; never on a
// worker). GW_ETIMEOUT.
GW_MUSTCHECK int journal_flush(struct journal *journal, uint32_t timeout_ms);

// One finished exchange: becomes a row of request_logs and adds to the hourly rollups.
struct log_attempt {
    int64_t upstream_id;
    int32_t status; // 0: no answer
    uint32_t duration_ms;
    struct slice reason; // "ok", "connect", "timeout: first byte", "http 503", "error in stream"…
};
struct log_record {
    struct gw_id id;
    int64_t created_ms;                   // wall
    int64_t key_id, user_id, upstream_id; // 0: none
    struct slice request_id, client_ip, method, path, dialect, model, upstream_model;
    struct slice finish, error_code, error_message, flags; // flags: comma list ("estimated,cut")
    struct slice key_prefix, user_agent, session, discounts_json, plugin;
    int32_t status;
    uint32_t duration_ms, ttft_ms; // ttft 0: none
    bool is_stream, is_success;
    uint64_t bytes_in, bytes_out;
    struct usage usage;
    int64_t cost_nano, price_version; // price_version 0: unpriced
    const struct log_attempt *attempts;
    size_t attempt_count;
};
// Versioned binary form (unknown later fields are skipped). Encodes into out, texts cut to what a
// row may hold, at most 16 attempts, so that a record always fits. Decodes: texts borrow from the
// payload, attempts lie in arena; GW_ECORRUPT.
struct arena;
struct buf;
GW_MUSTCHECK int log_record_encode(const struct log_record *record, struct buf *out);
GW_MUSTCHECK int log_record_decode(struct slice payload, struct arena *arena,
                                   struct log_record *out);

#pragma once
// What applier.c (reading, transactions, quarantine) and applier_fold.c (what a batch does to a
// database) share. Nobody else includes it. Applier thread.
#include "base/arena.h"
#include "base/buf.h"
#include "state/journal_impl.h"

#define APPLIER_BATCH_MAX 4096
#define ROW_COLUMNS 43
#define ROW_GROUP 16 // rows of one statement: its own cost is shared

struct fact {
    int64_t seq;
    struct slice bytes; // kind, version, payload, CRC
};

struct batch {
    struct arena *arena;
    struct buf scratch;
    struct fact facts[APPLIER_BATCH_MAX + JOURNAL_ROW_RECORDS];
    size_t count, bytes;
    struct db_value rows[ROW_GROUP][ROW_COLUMNS]; // of the logs, not written yet
    size_t row_count;
    int64_t after;
    bool is_from_memory; // never left it: no checksums to compare
};

// Folds some facts of a batch. GW_ECORRUPT, GW_EINVAL …: one of them is bad.
GW_MUSTCHECK int applier_fold(struct journal *journal, struct applier_side *side,
                              struct batch *batch, size_t first, size_t count);

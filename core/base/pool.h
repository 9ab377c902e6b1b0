#pragma once
// A small fixed pool of helper threads for what would block a loop: password hashes, big parses,
// file reads, certificates. A job runs once on a pool thread; its done function runs there too and
// normally posts a message to the loop that asked. The queue is bounded.
#include "base/err.h"
#include "base/mpsc.h"
#include <stddef.h>

struct pool;
struct pool_job {
    void (*run)(struct pool_job *job);  // pool thread
    void (*done)(struct pool_job *job); // pool thread, after run; may free the job
    struct pool_job *next;
};

struct pool *pool_new(const char *name, size_t threads, size_t max_queued); // NULL on failure
// Runs what is queued, then joins.
void pool_destroy(struct pool *pool);
// Any thread. GW_EFULL: queue full; GW_ECANCELLED: the pool is being destroyed. The caller then
// keeps the job.
GW_MUSTCHECK int pool_submit(struct pool *pool, struct pool_job *job);

#pragma once
// Counters and histograms for /metrics: each worker adds to its own shard without locks; a scrape
// sums the shards. Label sets are bounded (past 2,000 series per metric the label "other" is used).
// Names and buckets: OPERATIONS.md. Registering and rendering: any thread; adding: the shard's
// thread (its first sight of a series takes a lock).
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

struct stats;
struct stats_shard;

enum stats_kind { STATS_COUNTER, STATS_GAUGE, STATS_HISTOGRAM };

struct stats *stats_new(size_t shard_count);
void stats_free(struct stats *stats);
struct stats_shard *stats_shard_of(struct stats *stats, size_t index);
// labels: comma list of names; gives the metric's number or a negative error. buckets (seconds) for
// histograms: NULL = the standard ones. The same name again gives the same number (plugin reload).
int stats_register(struct stats *stats, enum stats_kind kind, const char *name, const char *help,
                   const char *labels, const double *buckets, size_t bucket_count);
// The metric's amounts are nano-units (money): rendered as exact decimals.
void stats_set_nano(struct stats *stats, int metric);
// values: one slice per label, in order.
void stats_add(struct stats_shard *shard, int metric, const struct slice *values, size_t count,
               int64_t amount);
void stats_set(struct stats_shard *shard, int metric, const struct slice *values, size_t count,
               int64_t amount);
void stats_observe_ms(struct stats_shard *shard, int metric, const struct slice *values,
                      size_t count, uint64_t ms);
// Prometheus text format 0.0.4.
GW_MUSTCHECK int stats_render(struct stats *stats, struct buf *out);

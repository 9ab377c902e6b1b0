// Metrics. Every series has a number, given by a registry under a mutex when a shard meets it for
// the first time; after that the shard finds it in a table of its own. Only the shard's thread
// writes a shard; a scrape reads it at the same time, so values and pointers are atomics and a
// table that has grown stays in memory until the end.
#include "state/stats.h"
#include "base/map.h"
#include "base/money.h"
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define METRICS_MAX 512
#define SERIES_MAX 2000
#define LABELS_MAX 8
#define BUCKETS_MAX 32
#define VALUE_MAX 128
#define KEY_MAX (LABELS_MAX * (VALUE_MAX + 1))

static const double standard_buckets[] = {
    .01,  .02,   .04,   .08,   .16,   .32,    .64,    1.28,   2.56,
    5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36,
};

struct series {
    struct slice key;      // label values, each ended by 0xff (never part of UTF-8)
    struct slice rendered; // a="x",b="y"
};

struct metric {
    enum stats_kind kind;
    char *name, *help, *labels;
    size_t label_count;
    bool is_nano;
    size_t bucket_count;
    uint64_t bucket_ms[BUCKETS_MAX];
    double bucket_s[BUCKETS_MAX];
    struct map *numbers;   // key → series number + 1
    struct series *series; // SERIES_MAX + 1: the last is "other"
    size_t series_count;
    atomic_bool is_full;
};

// One series in one shard: [0] amount, or sum of ms; then for histograms count per bucket and in
// all.
struct cell {
    uint64_t hash;
    struct slice key;
    size_t number;
    _Atomic int64_t values[];
};

struct table {
    struct table *older;
    size_t capacity, count; // power of two
    _Atomic(struct cell *) cells[];
};

// Label sets that were just used, as they were given: most additions meet one of them again and
// need neither a key nor its hash.
#define RECENT 64 // a power of two
#define RECENT_BYTES 192
struct recent {
    struct cell *cell;
    int metric;
    uint8_t count;
    uint8_t lens[LABELS_MAX];
    char bytes[RECENT_BYTES];
};

struct stats_shard {
    struct stats *stats;
    struct recent recent[RECENT];
    _Atomic(struct table *) tables[METRICS_MAX];
    _Atomic(struct cell *) others[METRICS_MAX];
};

struct stats {
    pthread_mutex_t mutex; // of metrics' registries
    _Atomic size_t metric_count;
    struct metric *metrics[METRICS_MAX];
    size_t shard_count;
    struct stats_shard *shards;
};

struct stats *stats_new(size_t shard_count)
{
    struct stats *stats = calloc(1, sizeof(*stats));
    if (!stats)
        return NULL;
    stats->shards = calloc(shard_count ? shard_count : 1, sizeof(*stats->shards));
    if (!stats->shards) {
        free(stats);
        return NULL;
    }
    pthread_mutex_init(&stats->mutex, NULL);
    stats->shard_count = shard_count;
    for (size_t i = 0; i < shard_count; i++)
        stats->shards[i].stats = stats;
    return stats;
}

static void free_metric(struct metric *metric)
{
    if (!metric)
        return;
    for (size_t i = 0; metric->series && i <= SERIES_MAX; i++) {
        free((char *)metric->series[i].key.ptr);
        free((char *)metric->series[i].rendered.ptr);
    }
    map_free(metric->numbers, NULL);
    free(metric->series);
    free(metric->name);
    free(metric->help);
    free(metric->labels);
    free(metric);
}

void stats_free(struct stats *stats)
{
    if (!stats)
        return;
    for (size_t s = 0; s < stats->shard_count; s++) {
        for (size_t m = 0; m < METRICS_MAX; m++) {
            struct table *table = atomic_load(&stats->shards[s].tables[m]);
            for (size_t i = 0; table && i < table->capacity; i++)
                free(atomic_load(&table->cells[i]));
            while (table) {
                struct table *older = table->older;
                free(table);
                table = older;
            }
            free(atomic_load(&stats->shards[s].others[m]));
        }
    }
    for (size_t m = 0; m < METRICS_MAX; m++)
        free_metric(stats->metrics[m]);
    pthread_mutex_destroy(&stats->mutex);
    free(stats->shards);
    free(stats);
}

struct stats_shard *stats_shard_of(struct stats *stats, size_t index)
{
    return index < stats->shard_count ? &stats->shards[index] : NULL;
}

static struct metric *new_metric(enum stats_kind kind, const char *name, const char *help,
                                 const char *labels, const double *buckets, size_t bucket_count)
{
    struct metric *metric = calloc(1, sizeof(*metric));
    if (!metric)
        return NULL;
    metric->kind = kind;
    metric->name = strdup(name);
    metric->help = strdup(help);
    metric->labels = strdup(labels);
    metric->numbers = map_new();
    metric->series = calloc(SERIES_MAX + 1, sizeof(*metric->series));
    if (!metric->name || !metric->help || !metric->labels || !metric->numbers || !metric->series) {
        free_metric(metric);
        return NULL;
    }
    if (*labels)
        metric->label_count = 1;
    for (const char *at = labels; *at; at++)
        metric->label_count += *at == ',';
    if (kind == STATS_HISTOGRAM) {
        metric->bucket_count = bucket_count;
        for (size_t i = 0; i < bucket_count; i++) {
            metric->bucket_s[i] = buckets[i];
            metric->bucket_ms[i] = (uint64_t)llround(buckets[i] * 1000);
        }
    }
    return metric;
}

int stats_register(struct stats *stats, enum stats_kind kind, const char *name, const char *help,
                   const char *labels, const double *buckets, size_t bucket_count)
{
    if (!labels)
        labels = "";
    if (!buckets) {
        buckets = standard_buckets;
        bucket_count = sizeof(standard_buckets) / sizeof(standard_buckets[0]);
    }
    if (bucket_count > BUCKETS_MAX)
        return GW_ETOOBIG;
    int number = GW_EFULL;
    pthread_mutex_lock(&stats->mutex);
    size_t count = atomic_load(&stats->metric_count);
    for (size_t i = 0; i < count; i++) {
        const struct metric *metric = stats->metrics[i];
        if (strcmp(metric->name, name) == 0) {
            number =
                metric->kind == kind && strcmp(metric->labels, labels) == 0 ? (int)i : GW_EINVAL;
            goto out;
        }
    }
    if (count < METRICS_MAX) {
        struct metric *metric = new_metric(kind, name, help, labels, buckets, bucket_count);
        if (!metric) {
            number = GW_ENOMEM;
        } else if (metric->label_count > LABELS_MAX) {
            free_metric(metric);
            number = GW_ETOOBIG;
        } else {
            stats->metrics[count] = metric;
            atomic_store_explicit(&stats->metric_count, count + 1, memory_order_release);
            number = (int)count;
        }
    }
out:
    pthread_mutex_unlock(&stats->mutex);
    return number;
}

void stats_set_nano(struct stats *stats, int metric)
{
    pthread_mutex_lock(&stats->mutex);
    if (metric >= 0 && (size_t)metric < atomic_load(&stats->metric_count))
        stats->metrics[metric]->is_nano = true;
    pthread_mutex_unlock(&stats->mutex);
}

// Length of the valid UTF-8 character at text, 0 when there is none.
static size_t utf8_len(const unsigned char *text, size_t len)
{
    size_t need = text[0] < 0x80   ? 1
                  : text[0] < 0xc2 ? 0
                  : text[0] < 0xe0 ? 2
                  : text[0] < 0xf0 ? 3
                  : text[0] < 0xf5 ? 4
                                   : 0;
    if (need == 0 || need > len)
        return 0;
    for (size_t i = 1; i < need; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] > 0x9f) ||
        (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] > 0x8f))
        return 0;
    return need;
}

static size_t put_value(char *to, struct slice value)
{
    size_t len = 0;
    const unsigned char *from = (const unsigned char *)value.ptr;
    for (size_t i = 0; i < value.len;) {
        size_t size = utf8_len(from + i, value.len - i);
        if (len + (size ? size : 1) > VALUE_MAX)
            break;
        if (size == 0)
            to[len++] = '?';
        else
            memcpy(to + len, from + i, size);
        len += size;
        i += size ? size : 1;
    }
    to[len++] = (char)0xff;
    return len;
}

static struct slice copy_slice(struct slice text)
{
    char *copy = malloc(text.len + 1);
    if (copy)
        memcpy(copy, text.ptr, text.len);
    return slice_of(copy, copy ? text.len : 0);
}

// a="x",b="y" from the key.
static struct slice render_labels(const struct metric *metric, struct slice key)
{
    struct buf text = BUF_INIT(0);
    const char *label = metric->labels;
    int err = 0;
    for (size_t i = 0; i < metric->label_count; i++) {
        size_t name_len = strcspn(label, ",");
        err |= buf_printf(&text, "%s%.*s=\"", i ? "," : "", (int)name_len, label);
        label += name_len + (label[name_len] == ',');
        for (; key.len && (unsigned char)*key.ptr != 0xff; key = slice_from(key, 1)) {
            char c = *key.ptr;
            if (c == '\n')
                err |= buf_append_str(&text, "\\n");
            else if (c == '\\' || c == '"')
                err |= buf_printf(&text, "\\%c", c);
            else
                err |= buf_append_char(&text, (unsigned char)c < 0x20 ? ' ' : c);
        }
        key = slice_from(key, 1);
        err |= buf_append_char(&text, '"');
    }
    struct slice copy = err ? SLICE_NONE : copy_slice(buf_slice(&text));
    buf_free(&text);
    return copy;
}

// The number of a series, SERIES_MAX when the metric is full (or memory is). Takes the mutex.
static size_t number_of(struct stats *stats, struct metric *metric, struct slice key)
{
    size_t number = SERIES_MAX;
    pthread_mutex_lock(&stats->mutex);
    void *known = map_get(metric->numbers, key);
    if (known) {
        number = (size_t)(uintptr_t)known - 1;
    } else if (metric->series_count < SERIES_MAX) {
        struct series series = {copy_slice(key), render_labels(metric, key)};
        void *value = (void *)(uintptr_t)(metric->series_count + 1);
        if (series.key.ptr && series.rendered.ptr &&
            map_put(metric->numbers, key, value, NULL) == 0) {
            number = metric->series_count++;
            metric->series[number] = series;
        } else {
            free((char *)series.key.ptr);
            free((char *)series.rendered.ptr);
        }
    } else {
        atomic_store(&metric->is_full, true);
    }
    if (number == SERIES_MAX && !metric->series[SERIES_MAX].rendered.ptr) {
        char other[KEY_MAX];
        size_t len = 0;
        for (size_t i = 0; i < metric->label_count; i++)
            len += put_value(other + len, SLICE_LIT("other"));
        metric->series[SERIES_MAX].rendered = render_labels(metric, slice_of(other, len));
    }
    pthread_mutex_unlock(&stats->mutex);
    return number;
}

static struct cell *new_cell(const struct metric *metric, uint64_t hash, struct slice key,
                             size_t number)
{
    size_t count = metric->kind == STATS_HISTOGRAM ? metric->bucket_count + 2 : 1;
    struct cell *cell = calloc(1, sizeof(*cell) + count * sizeof(cell->values[0]));
    if (!cell)
        return NULL;
    cell->hash = hash;
    cell->number = number;
    cell->key = key;
    return cell;
}

static struct table *new_table(size_t capacity, struct table *older)
{
    struct table *table = calloc(1, sizeof(*table) + capacity * sizeof(table->cells[0]));
    if (!table)
        return NULL;
    table->older = older;
    table->capacity = capacity;
    for (size_t i = 0; older && i < older->capacity; i++) {
        struct cell *cell = atomic_load(&older->cells[i]);
        if (!cell)
            continue;
        size_t at = cell->hash & (capacity - 1);
        while (atomic_load(&table->cells[at]))
            at = (at + 1) & (capacity - 1);
        atomic_store(&table->cells[at], cell);
        table->count++;
    }
    return table;
}

static struct cell *other_cell(struct stats_shard *shard, int number, struct metric *metric)
{
    struct cell *cell = atomic_load(&shard->others[number]);
    if (!cell) {
        cell = new_cell(metric, 0, SLICE_NONE, SERIES_MAX);
        atomic_store_explicit(&shard->others[number], cell, memory_order_release);
    }
    return cell;
}

static struct recent *recent_of(struct stats_shard *shard, int number, const struct slice *values,
                                size_t count)
{
    uint64_t hash = (uint64_t)number;
    for (size_t i = 0; i < count; i++) {
        uint64_t tail = 0; // only chooses a place: all bytes are compared
        size_t len = values[i].len, take = len < sizeof tail ? len : sizeof tail;
        if (take)
            memcpy(&tail, values[i].ptr + len - take, take);
        hash = (hash ^ tail ^ len) * UINT64_C(0x9e3779b97f4a7c15);
    }
    return &shard->recent[hash >> 58];
}
_Static_assert(RECENT == 1 << 6, "the place is made of the hash's upper six bits");

static bool is_recent(const struct recent *recent, int number, const struct slice *values,
                      size_t count)
{
    if (!recent->cell || recent->metric != number || recent->count != count)
        return false;
    const char *at = recent->bytes;
    for (size_t i = 0; i < count; i++) {
        if (values[i].len != recent->lens[i] || memcmp(at, values[i].ptr, values[i].len) != 0)
            return false;
        at += values[i].len;
    }
    return true;
}

static void remember(struct recent *recent, int number, const struct slice *values, size_t count,
                     struct cell *cell)
{
    size_t len = 0;
    recent->cell = NULL;
    for (size_t i = 0; i < count; i++) {
        if (values[i].len == 0 || values[i].len > RECENT_BYTES - len)
            return;
        memcpy(recent->bytes + len, values[i].ptr, values[i].len);
        recent->lens[i] = (uint8_t)values[i].len;
        len += values[i].len;
    }
    recent->metric = number;
    recent->count = (uint8_t)count;
    recent->cell = cell;
}

static struct cell *find_cell(struct stats_shard *shard, int number, const struct slice *values,
                              size_t count);

// The shard's cell of a label set; NULL: no memory, or not such a metric.
static struct cell *cell_of(struct stats_shard *shard, int number, const struct slice *values,
                            size_t count)
{
    struct recent *recent = recent_of(shard, number, values, count);
    if (is_recent(recent, number, values, count))
        return recent->cell;
    struct cell *cell = find_cell(shard, number, values, count);
    if (cell)
        remember(recent, number, values, count, cell);
    return cell;
}

static struct cell *find_cell(struct stats_shard *shard, int number, const struct slice *values,
                              size_t count)
{
    struct stats *stats = shard->stats;
    if (number < 0 ||
        (size_t)number >= atomic_load_explicit(&stats->metric_count, memory_order_acquire))
        return NULL;
    struct metric *metric = stats->metrics[number];
    if (count != metric->label_count)
        return NULL;
    char bytes[KEY_MAX];
    bytes[0] = '\0';
    struct slice key = slice_of(bytes, 0);
    for (size_t i = 0; i < count; i++)
        key.len += put_value(bytes + key.len, values[i]);
    uint64_t hash = map_hash(key);
    struct table *table = atomic_load_explicit(&shard->tables[number], memory_order_relaxed);
    if (table) {
        size_t at = hash & (table->capacity - 1);
        struct cell *cell;
        while ((cell = atomic_load_explicit(&table->cells[at], memory_order_relaxed))) {
            if (cell->hash == hash && slice_eq(cell->key, key))
                return cell;
            at = (at + 1) & (table->capacity - 1);
        }
    }
    if (atomic_load_explicit(&metric->is_full, memory_order_relaxed))
        return other_cell(shard, number, metric);
    size_t series = number_of(stats, metric, key);
    if (series == SERIES_MAX)
        return other_cell(shard, number, metric);
    if (!table || table->count * 2 >= table->capacity) {
        table = new_table(table ? table->capacity * 2 : 16, table);
        if (!table)
            return NULL;
        atomic_store_explicit(&shard->tables[number], table, memory_order_release);
    }
    struct cell *cell = new_cell(metric, hash, metric->series[series].key, series);
    if (!cell)
        return NULL;
    size_t at = hash & (table->capacity - 1);
    while (atomic_load_explicit(&table->cells[at], memory_order_relaxed))
        at = (at + 1) & (table->capacity - 1);
    atomic_store_explicit(&table->cells[at], cell, memory_order_release);
    table->count++;
    return cell;
}

// Only this thread writes: no locked instruction is needed.
static void add_to(_Atomic int64_t *value, int64_t amount)
{
    int64_t old = atomic_load_explicit(value, memory_order_relaxed);
    atomic_store_explicit(value, (int64_t)((uint64_t)old + (uint64_t)amount), memory_order_relaxed);
}

void stats_add(struct stats_shard *shard, int metric, const struct slice *values, size_t count,
               int64_t amount)
{
    struct cell *cell = cell_of(shard, metric, values, count);
    if (cell)
        add_to(&cell->values[0], amount);
}

void stats_set(struct stats_shard *shard, int metric, const struct slice *values, size_t count,
               int64_t amount)
{
    struct cell *cell = cell_of(shard, metric, values, count);
    if (cell)
        atomic_store_explicit(&cell->values[0], amount, memory_order_relaxed);
}

void stats_observe_ms(struct stats_shard *shard, int metric, const struct slice *values,
                      size_t count, uint64_t ms)
{
    struct cell *cell = cell_of(shard, metric, values, count);
    if (!cell)
        return;
    const struct metric *info = shard->stats->metrics[metric];
    if (info->kind != STATS_HISTOGRAM)
        return;
    size_t bucket = 0;
    while (bucket < info->bucket_count && ms > info->bucket_ms[bucket])
        bucket++;
    add_to(&cell->values[0], (int64_t)(ms > INT32_MAX ? INT32_MAX : ms));
    add_to(&cell->values[1 + bucket], 1);
}

static void sum_cell(const struct cell *cell, size_t width, int64_t *totals)
{
    for (size_t i = 0; i < width; i++)
        totals[cell->number * width + i] =
            (int64_t)((uint64_t)totals[cell->number * width + i] +
                      (uint64_t)atomic_load_explicit(&cell->values[i], memory_order_relaxed));
}

static int render_number(struct buf *out, const struct metric *metric, int64_t value)
{
    char text[32];
    if (!metric->is_nano)
        return buf_printf(out, " %lld\n", (long long)value);
    money_format(value, text, sizeof(text));
    return buf_printf(out, " %s\n", text);
}

static int render_histogram(struct buf *out, const struct metric *metric, struct slice labels,
                            const int64_t *values)
{
    const char *comma = labels.len ? "," : "";
    int64_t count = 0;
    int err = 0;
    for (size_t i = 0; i <= metric->bucket_count && err == 0; i++) {
        count += values[1 + i];
        char bound[32] = "+Inf";
        if (i < metric->bucket_count)
            snprintf(bound, sizeof(bound), "%.10g", metric->bucket_s[i]);
        err = buf_printf(out, "%s_bucket{%.*s%sle=\"%s\"} %lld\n", metric->name, SLICE_FMT(labels),
                         comma, bound, (long long)count);
    }
    const char *open = labels.len ? "{" : "", *close = labels.len ? "}" : "";
    if (err == 0)
        err = buf_printf(out, "%s_sum%s%.*s%s %lld.%03d\n%s_count%s%.*s%s %lld\n", metric->name,
                         open, SLICE_FMT(labels), close, (long long)(values[0] / 1000),
                         (int)(values[0] % 1000), metric->name, open, SLICE_FMT(labels), close,
                         (long long)count);
    return err;
}

static int render_metric(struct stats *stats, size_t number, struct buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    struct metric *metric = stats->metrics[number];
    size_t width = metric->kind == STATS_HISTOGRAM ? metric->bucket_count + 2 : 1;
    int64_t *totals = calloc((SERIES_MAX + 1) * width, sizeof(*totals));
    if (!totals)
        return GW_ENOMEM;
    bool has_other = false;
    for (size_t s = 0; s < stats->shard_count; s++) {
        struct table *table =
            atomic_load_explicit(&stats->shards[s].tables[number], memory_order_acquire);
        for (size_t i = 0; table && i < table->capacity; i++) {
            struct cell *cell = atomic_load_explicit(&table->cells[i], memory_order_acquire);
            if (cell)
                sum_cell(cell, width, totals);
        }
        struct cell *other =
            atomic_load_explicit(&stats->shards[s].others[number], memory_order_acquire);
        has_other = has_other || other;
        if (other)
            sum_cell(other, width, totals);
    }
    int err = buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", metric->name, metric->help,
                         metric->name, kinds[metric->kind]);
    for (size_t i = 0; i <= SERIES_MAX && err == 0; i++) {
        struct slice labels = metric->series[i].rendered;
        if (i == SERIES_MAX ? !has_other : i >= metric->series_count)
            continue;
        if (!labels.ptr)
            labels = SLICE_LIT("");
        if (metric->kind == STATS_HISTOGRAM) {
            err = render_histogram(out, metric, labels, &totals[i * width]);
            continue;
        }
        err = labels.len ? buf_printf(out, "%s{%.*s}", metric->name, SLICE_FMT(labels))
                         : buf_append_str(out, metric->name);
        if (err == 0)
            err = render_number(out, metric, totals[i]);
    }
    free(totals);
    return err;
}

int stats_render(struct stats *stats, struct buf *out)
{
    int err = 0;
    pthread_mutex_lock(&stats->mutex);
    size_t count = atomic_load(&stats->metric_count);
    for (size_t i = 0; i < count && err == 0; i++)
        err = render_metric(stats, i, out);
    pthread_mutex_unlock(&stats->mutex);
    return err;
}

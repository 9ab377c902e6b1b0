// bench_state: the state floor alone, in one process: what the journal takes and what the applier
// folds. Prints one line of JSON.
//
//   bench_state ledger DIR [SECONDS=3] [IN_FLIGHT=512] [power|process]
//       Calls of two records each: one of a hold's size, acknowledged when it is durable, then one
//       of a settle's size. So many calls are under way at any time.
//   bench_state apply DIR [RECORDS=200000] [KEYS=100] [UPSTREAMS=4] [DAYS=30]
//       Log records as fast as they are taken, until all are rows; DIR's database may exist (key
//       ids 1…KEYS, upstream ids 1…UPSTREAMS, spread over the last DAYS).
//
// ENCRYPTION_KEY as for the gateway; DIR is the folder of moongate.db. No gateway may run there.
#include "base/buf.h"
#include "base/clock.h"
#include "base/id.h"
#include "codec/fernet.h"
#include "state/journal_impl.h"
#include "state/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define QUEUE_BYTES (64u << 20)
#define FLUSH_MS 600000

struct threads { // CPU time in microseconds
    double push, journal, applier;
};

static double clock_us(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) != 0)
        return 0;
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static struct threads read_threads(struct journal *journal)
{
    clockid_t journal_clock, applier_clock;
    struct threads threads = {.push = clock_us(CLOCK_THREAD_CPUTIME_ID)};
    if (pthread_getcpuclockid(journal->thread, &journal_clock) == 0)
        threads.journal = clock_us(journal_clock);
    if (pthread_getcpuclockid(journal->applier_thread, &applier_clock) == 0)
        threads.applier = clock_us(applier_clock);
    return threads;
}

static int open_store(const char *dir, const char *durability, struct store **out)
{
    char url[512], error[256] = "";
    const char *key = getenv("ENCRYPTION_KEY");
    struct conf *conf = NULL;
    struct fernet *fernet = NULL;
    snprintf(url, sizeof url, "sqlite:///%s/moongate.db", dir);
    int err = conf_new(&conf);
    if (!err)
        err = conf_set(conf, conf_key_find(SLICE_LIT("database_url")), slice_str(url), error,
                       sizeof error);
    if (!err)
        err = conf_set(conf, conf_key_find(SLICE_LIT("durability")), slice_str(durability), error,
                       sizeof error);
    if (!err)
        err = fernet_new(key ? slice_str(key)
                             : SLICE_LIT("q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="),
                         &fernet, NULL);
    const struct store_options options = {
        .conf = conf,
        .fernet = fernet,
        .epoch = epoch_new(4),
        .migrations_dir = MOONGATE_SOURCE_DIR "/schema",
    };
    if (!err)
        err = store_open(&options, out, error, sizeof error);
    if (err)
        fprintf(stderr, "bench_state: %s (%d)\n", error, err);
    return err;
}

// ---- ledger ------------------------------------------------------------------------------------

struct call {
    struct journal_ack ack;
    struct call *next; // of those whose hold is durable
    uint64_t begun_ns;
    int err;
};

static struct {
    _Atomic(struct call *) durable;
    sem_t wake;
} g;

static uint64_t mono_ns(void)
{
    return (uint64_t)(clock_us(CLOCK_MONOTONIC) * 1e3);
}

static void on_durable(struct journal_ack *ack, int err)
{
    struct call *call = (struct call *)ack;
    call->err = err;
    call->next = atomic_load(&g.durable);
    while (!atomic_compare_exchange_weak(&g.durable, &call->next, call))
        continue;
    sem_post(&g.wake);
}

// The ledger's own kinds of record come with it; until then log records of the same size stand in.
static int encode_like(struct buf *out, size_t size, int64_t number)
{
    static char filler[256];
    struct log_record record = {.created_ms = clock_wall_ms(), .key_id = number % 100 + 1};
    memset(filler, 'h', sizeof filler);
    buf_clear(out);
    int err = id_new(&record.id);
    if (!err)
        err = log_record_encode(&record, out);
    if (err || out->len + 4 >= size)
        return err;
    record.path = slice_of(filler, size - out->len - 3);
    buf_clear(out);
    return log_record_encode(&record, out);
}

static int begin_call(struct journal *journal, struct call *call, struct buf *hold)
{
    call->begun_ns = mono_ns();
    call->ack.on_commit = on_durable;
    return journal_push(journal, JOURNAL_LOG, buf_slice(hold), &call->ack);
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left < right ? -1 : left > right;
}

#define HOLD_BYTES 96    // id, wallet, amounts, owner epoch
#define SETTLE_BYTES 160 // id, wallet, amounts, usage, price version
#define SAMPLES (1u << 20)

static int run_ledger(const char *dir, double seconds, int in_flight, const char *durability)
{
    struct store *store = NULL;
    struct buf hold = BUF_INIT(0), settle = BUF_INIT(0);
    struct call *calls = calloc((size_t)in_flight, sizeof *calls);
    uint32_t *waits = calloc(SAMPLES, sizeof *waits);
    int err = calls && waits ? open_store(dir, durability, &store) : GW_ENOMEM;
    if (err)
        return err;
    struct journal *journal = store_journal(store);
    struct journal_view first, last;
    sem_init(&g.wake, 0, 0);
    journal_read_view(journal, &first);
    struct threads before = read_threads(journal);
    uint64_t start = mono_ns(), end = start + (uint64_t)(seconds * 1e9), done = 0;
    int64_t number = 0;
    int open_calls = 0;
    for (int i = 0; i < in_flight && !err; i++) {
        err = encode_like(&hold, HOLD_BYTES, number++);
        if (!err)
            err = begin_call(journal, &calls[i], &hold);
        open_calls += !err;
    }
    while (open_calls > 0) {
        sem_wait(&g.wake);
        struct call *list = atomic_exchange(&g.durable, NULL), *call;
        while ((call = list) != NULL) {
            list = call->next;
            err = err ? err : call->err;
            waits[done++ % SAMPLES] = (uint32_t)((mono_ns() - call->begun_ns) / 1000);
            if (!err)
                err = encode_like(&settle, SETTLE_BYTES, number);
            if (!err)
                err = journal_push(journal, JOURNAL_LOG, buf_slice(&settle), NULL);
            if (!err)
                err = encode_like(&hold, HOLD_BYTES, number++);
            if (err || mono_ns() >= end || begin_call(journal, call, &hold) != 0)
                open_calls--;
        }
    }
    double took = (double)(mono_ns() - start) / 1e9;
    struct threads after = read_threads(journal);
    journal_read_view(journal, &last);
    size_t samples = done < SAMPLES ? done : SAMPLES;
    qsort(waits, samples, sizeof *waits, compare_u32);
    printf("{\"calls\":%llu,\"calls_per_s\":%.0f,\"commits\":%llu,\"ack_p50_us\":%u,"
           "\"ack_p99_us\":%u,\"push_us_per_call\":%.3f,\"journal_us_per_call\":%.3f,"
           "\"error\":%d}\n",
           (unsigned long long)done, (double)done / took,
           (unsigned long long)(last.commits - first.commits), samples ? waits[samples / 2] : 0,
           samples ? waits[samples * 99 / 100] : 0, (after.push - before.push) / (double)done,
           (after.journal - before.journal) / (double)done, err);
    store_close(store);
    buf_free(&hold);
    buf_free(&settle);
    free(calls);
    free(waits);
    return err;
}

// ---- applier -----------------------------------------------------------------------------------

struct shape {
    int64_t records, keys, upstreams, days;
};

static int encode_row(struct buf *out, const struct shape *shape, int64_t number)
{
    static const char *const models[] = {"gpt-5.1", "gpt-5.1-mini", "claude-sonnet-4-5",
                                         "claude-haiku-4-5", "gemini-3-pro"};
    uint64_t mixed = (uint64_t)number * UINT64_C(0x9e3779b97f4a7c15) >> 20;
    bool is_bad = mixed % 50 == 0;
    int64_t span_ms = shape->days * INT64_C(86400000);
    const struct log_attempt attempt = {
        .upstream_id = 1 + (int64_t)(mixed % (uint64_t)shape->upstreams),
        .status = is_bad ? 503 : 200,
        .duration_ms = 812,
        .reason = is_bad ? SLICE_LIT("http 503") : SLICE_LIT("ok"),
    };
    struct log_record record = {
        .created_ms = clock_wall_ms() - span_ms +
                      (int64_t)((double)number / (double)shape->records * (double)span_ms),
        .key_id = 1 + (int64_t)((mixed >> 8) % (uint64_t)shape->keys),
        .upstream_id = attempt.upstream_id,
        .request_id = SLICE_LIT("01a7c3f0-5b1e-7c44-9a02-6b8f6d7f2d11"),
        .client_ip = SLICE_LIT("203.0.113.77"),
        .method = SLICE_LIT("POST"),
        .path = SLICE_LIT("/v1/chat/completions"),
        .dialect = SLICE_LIT("openai"),
        .model = slice_str(models[mixed % 5]),
        .upstream_model = slice_str(models[mixed % 5]),
        .finish = SLICE_LIT("stop"),
        .key_prefix = SLICE_LIT("sk-auto-abcd"),
        .user_agent = SLICE_LIT("OpenAI/Python 1.59.6"),
        .error_code = is_bad ? SLICE_LIT("upstream_error") : SLICE_LIT(""),
        .status = attempt.status,
        .duration_ms = 815,
        .ttft_ms = 203,
        .is_success = !is_bad,
        .bytes_in = 1033,
        .bytes_out = 1270,
        .usage = {.input = 261, .cache_read = 20, .output = 133, .flags = USAGE_REPORTED},
        .cost_nano = 1234567,
        .price_version = 3,
        .attempts = &attempt,
        .attempt_count = 1,
    };
    int err = id_new(&record.id);
    buf_clear(out);
    return err ? err : log_record_encode(&record, out);
}

static int run_apply(const char *dir, const struct shape *shape)
{
    struct store *store = NULL;
    struct buf bytes = BUF_INIT(0);
    struct journal_view view;
    int err = open_store(dir, "power", &store);
    if (err)
        return err;
    struct journal *journal = store_journal(store);
    struct threads before = read_threads(journal);
    uint64_t start = mono_ns();
    for (int64_t i = 0; i < shape->records && !err; i++) {
        err = encode_row(&bytes, shape, i);
        if (!err)
            err = journal_push(journal, JOURNAL_LOG, buf_slice(&bytes), NULL);
        if (i % 256)
            continue;
        for (journal_read_view(journal, &view); !view.is_sick && view.queued_bytes > QUEUE_BYTES;
             journal_read_view(journal, &view))
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    double pushed = (double)(mono_ns() - start) / 1e9;
    if (!err)
        err = journal_flush(journal, FLUSH_MS);
    double took = (double)(mono_ns() - start) / 1e9;
    struct threads after = read_threads(journal);
    double count = (double)shape->records;
    printf("{\"records\":%lld,\"pushed_s\":%.3f,\"applied_s\":%.3f,\"records_per_s\":%.0f,"
           "\"push_us\":%.3f,\"journal_us\":%.3f,\"applier_us\":%.3f,\"error\":%d}\n",
           (long long)shape->records, pushed, took, count / took,
           (after.push - before.push) / count, (after.journal - before.journal) / count,
           (after.applier - before.applier) / count, err);
    buf_free(&bytes);
    store_close(store);
    return err;
}

int main(int argc, char **argv)
{
    if (argc >= 3 && strcmp(argv[1], "ledger") == 0) {
        double seconds = argc > 3 ? atof(argv[3]) : 3;
        int in_flight = argc > 4 ? atoi(argv[4]) : 512;
        if (seconds > 0 && in_flight > 0)
            return run_ledger(argv[2], seconds, in_flight, argc > 5 ? argv[5] : "power") ? 1 : 0;
    } else if (argc >= 3 && strcmp(argv[1], "apply") == 0) {
        struct shape shape = {
            .records = argc > 3 ? atoll(argv[3]) : 200000,
            .keys = argc > 4 ? atoll(argv[4]) : 100,
            .upstreams = argc > 5 ? atoll(argv[5]) : 4,
            .days = argc > 6 ? atoll(argv[6]) : 30,
        };
        if (shape.records > 0 && shape.keys > 0 && shape.upstreams > 0 && shape.days > 0)
            return run_apply(argv[2], &shape) ? 1 : 0;
    }
    fprintf(stderr, "usage: bench_state ledger DIR [SECONDS] [IN_FLIGHT] [power|process]\n"
                    "       bench_state apply DIR [RECORDS] [KEYS] [UPSTREAMS] [DAYS]\n");
    return 2;
}

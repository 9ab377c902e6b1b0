// What an exchange costs outside the worker: pushes log records at a steady rate into the journal
// of a store in a folder of its own and prints the CPU time per record of the pushing thread, the
// journal thread and the applier, and the bytes written.
//
//   bench_journal DIR [RECORDS=200000] [RATE=20000] [KEYS=1000] [power|process]
#include "base/buf.h"
#include "base/clock.h"
#include "base/id.h"
#include "codec/fernet.h"
#include "state/journal_impl.h"
#include "state/store.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 5

static double cpu_us(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) != 0)
        return 0;
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static struct log_record record_of(int64_t number, int64_t keys)
{
    static const char *const models[] = {"gpt-5.1", "gpt-5.1-mini", "claude-sonnet-4-5",
                                         "claude-haiku-4-5", "gemini-3-pro"};
    static struct log_attempt attempt;
    uint64_t mixed = (uint64_t)number * UINT64_C(0x9e3779b97f4a7c15) >> 20;
    bool is_bad = mixed % 50 == 0;
    attempt = (struct log_attempt){
        .upstream_id = 1 + (int64_t)(mixed % 8),
        .status = is_bad ? 503 : 200,
        .duration_ms = 812,
        .reason = is_bad ? SLICE_LIT("http 503") : SLICE_LIT("ok"),
    };
    struct log_record record = {
        .created_ms = clock_wall_ms(),
        .key_id = 1 + (int64_t)(mixed % (uint64_t)keys),
        .user_id = 1 + (int64_t)(mixed % (uint64_t)(keys / 4 + 1)),
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
    if (is_bad)
        record.error_code = SLICE_LIT("upstream_error");
    return record;
}

static int open_store(const char *dir, const char *durability, struct store **out)
{
    char url[512], error[256] = "";
    struct conf *conf = NULL;
    struct fernet *fernet = NULL;
    snprintf(url, sizeof url, "sqlite:///%s/bench.db", dir);
    int err = conf_new(&conf);
    if (!err)
        err = conf_set(conf, conf_key_find(SLICE_LIT("database_url")), slice_str(url), error,
                       sizeof error);
    if (!err)
        err = conf_set(conf, conf_key_find(SLICE_LIT("durability")), slice_str(durability), error,
                       sizeof error);
    if (!err)
        err = fernet_new(SLICE_LIT("q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="), &fernet, NULL);
    const struct store_options options = {
        .conf = conf,
        .fernet = fernet,
        .epoch = epoch_new(4),
        .migrations_dir = MOONGATE_SOURCE_DIR "/schema",
    };
    if (!err)
        err = store_open(&options, out, error, sizeof error);
    if (err)
        fprintf(stderr, "bench_journal: %s (%d)\n", error, err);
    return err;
}

static int push_all(struct journal *journal, int64_t records, int64_t rate, int64_t keys)
{
    struct buf bytes = BUF_INIT(0);
    uint64_t start = clock_boot_ms();
    int err = 0;
    for (int64_t i = 0; i < records && !err;) {
        int64_t due = (int64_t)(clock_boot_ms() - start + TICK_MS) * rate / 1000;
        for (; i < records && i < due && !err; i++) {
            struct log_record record = record_of(i, keys);
            err = id_new(&record.id);
            buf_clear(&bytes);
            if (!err)
                err = log_record_encode(&record, &bytes);
            if (!err)
                err = journal_push(journal, JOURNAL_LOG, buf_slice(&bytes), NULL);
        }
        nanosleep(&(struct timespec){0, TICK_MS * 1000000L}, NULL);
    }
    buf_free(&bytes);
    return err;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "bench_journal DIR [RECORDS] [RATE] [KEYS] [power|process]\n");
        return 2;
    }
    int64_t records = argc > 2 ? atoll(argv[2]) : 200000, rate = argc > 3 ? atoll(argv[3]) : 20000;
    int64_t keys = argc > 4 ? atoll(argv[4]) : 1000;
    const char *durability = argc > 5 ? argv[5] : "power";
    struct store *store = NULL;
    if (records < 1 || rate < 1 || keys < 1 || open_store(argv[1], durability, &store) != 0)
        return 1;
    struct journal *journal = store_journal(store);
    if (journal_flush(journal, 600000) != 0)
        return 1;
    clockid_t clocks[3] = {CLOCK_THREAD_CPUTIME_ID};
    static const char *const names[3] = {"push", "journal", "applier"};
    if (pthread_getcpuclockid(journal->thread, &clocks[1]) != 0 ||
        pthread_getcpuclockid(journal->applier_thread, &clocks[2]) != 0)
        return 1;
    double before[3], sum = 0;
    for (int i = 0; i < 3; i++)
        before[i] = cpu_us(clocks[i]);
    struct rusage usage_before, usage_after;
    struct journal_view first, last;
    journal_read_view(journal, &first);
    getrusage(RUSAGE_SELF, &usage_before);
    uint64_t start = clock_boot_ms();
    int err = push_all(journal, records, rate, keys);
    uint64_t pushed_ms = clock_boot_ms() - start;
    if (!err)
        err = journal_flush(journal, 600000);
    uint64_t took_ms = clock_boot_ms() - start;
    getrusage(RUSAGE_SELF, &usage_after);
    journal_read_view(journal, &last);
    printf("%lld records, %lld keys, %s: pushed in %llu ms, applied after %llu ms (%.0f/s), "
           "%llu commits, %lld blocks written\n",
           (long long)records, (long long)keys, durability, (unsigned long long)pushed_ms,
           (unsigned long long)took_ms, (double)records * 1e3 / (double)took_ms,
           (unsigned long long)(last.commits - first.commits),
           (long long)(usage_after.ru_oublock - usage_before.ru_oublock));
    for (int i = 0; i < 3; i++) {
        double each = (cpu_us(clocks[i]) - before[i]) / (double)records;
        sum += i ? each : 0;
        printf("%-8s %6.2f us CPU per record\n", names[i], each);
    }
    printf("%-8s %6.2f us (journal and applier)\n", "sum", sum);
    if (err)
        fprintf(stderr, "bench_journal: error %d\n", err);
    store_close(store);
    return err ? 1 : 0;
}

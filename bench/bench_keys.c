// A million keys in one process: fills a database and measures the store that opens it. Used by
// bench/million_keys.mjs, which does the same through the gateway's own REST surface.
//
//   bench_keys fill FILE KEYS      users (a quarter as many) and keys; key n is "sk-bench-%032d"
//   bench_keys backlog FILE MIB    leaves that much in the journal, not applied, as a crash does
//   bench_keys measure FILE [CHANGES=300]
//   bench_keys logs FILE [ROWS=0]  adds log rows, then times the list's filters
#include "base/arena.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/id.h"
#include "base/log.h"
#include "codec/fernet.h"
#include "codec/json.h"
#include "codec/secret.h"
#include "state/admin.h"
#include "state/store.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES_MAX 4096
#define DAY_MS INT64_C(86400000)

struct bench {
    const char *file;
    struct conf *conf;
    struct fernet *fernet;
    struct epoch *epoch;
    struct store *store;
};

static void fail(const char *what, int err, const char *text)
{
    fprintf(stderr, "bench_keys: %s: %s %s\n", what, err ? gw_err_name(err) : "", text);
    exit(1);
}

static void must(const char *what, int err, const char *text)
{
    if (err)
        fail(what, err, text);
}

static double now_ms(void)
{
    return (double)clock_boot_ns() / 1e6;
}

static double resident_mb(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return (double)pages * 4096 / 1e6;
}

static void prepare(struct bench *bench, const char *file)
{
    char url[1024], error[256] = "";
    bench->file = file;
    snprintf(url, sizeof url, "sqlite:///%s", file);
    must("conf", conf_new(&bench->conf), "");
    must("conf",
         conf_set(bench->conf, conf_key_find(SLICE_LIT("database_url")), slice_str(url), error,
                  sizeof error),
         error);
    must(
        "fernet",
        fernet_new(SLICE_LIT("q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="), &bench->fernet, NULL),
        "");
    bench->epoch = epoch_new(8);
}

static void open_store(struct bench *bench)
{
    char error[256] = "";
    const struct store_options options = {
        .conf = bench->conf,
        .fernet = bench->fernet,
        .epoch = bench->epoch,
        .migrations_dir = MOONGATE_SOURCE_DIR "/schema",
    };
    must("store_open", store_open(&options, &bench->store, error, sizeof error), error);
}

static void key_text(int64_t number, char out[48])
{
    snprintf(out, 48, "sk-bench-%032lld", (long long)number);
}

static struct sha256 key_hash(int64_t number)
{
    char text[48];
    struct sha256 hash;
    key_text(number, text);
    must("sha256", secret_sha256(slice_str(text), &hash), "");
    return hash;
}

static void fill_rows(struct db *db, int64_t keys, int64_t users)
{
    int64_t now = clock_wall_ms();
    char name[64], uid[37];
    struct gw_id id;
    int err = db_begin(db, true);
    for (int64_t i = 1; i <= users && !err; i++) {
        snprintf(name, sizeof name, "user-%lld", (long long)i);
        const struct db_value args[] = {DB_INT_VALUE(i), DB_TEXT_VALUE(slice_str(name)),
                                        DB_INT_VALUE(now)};
        err = db_run(db,
                     SLICE_LIT("INSERT OR IGNORE INTO users (id, username, created_ms, updated_ms) "
                               "VALUES (?1, ?2, ?3, ?3)"),
                     args, 3, NULL, 0, NULL);
    }
    for (int64_t i = 1; i <= keys && !err; i++) {
        struct sha256 hash = key_hash(i);
        must("id", id_new_random(&id), "");
        id_format(&id, uid);
        snprintf(name, sizeof name, "service %lld", (long long)i);
        const struct db_value args[] = {
            DB_INT_VALUE(i),
            DB_TEXT_VALUE(slice_str(uid)),
            i % 2 && users ? DB_INT_VALUE(1 + i % users) : DB_NULL_VALUE,
            DB_BLOB_VALUE(slice_of((const char *)hash.bytes, sizeof hash.bytes)),
            DB_TEXT_VALUE(slice_str(name)),
            DB_INT_VALUE(now - i),
        };
        err = db_run(db,
                     SLICE_LIT("INSERT OR IGNORE INTO api_keys (id, uid, user_id, key_hash, "
                               "key_prefix, key_display, name, created_ms, updated_ms) VALUES "
                               "(?1, ?2, ?3, ?4, 'sk-bench-000', 'sk-bench...', ?5, ?6, ?6)"),
                     args, 6, NULL, 0, NULL);
        if (i % 50000 == 0 && !err)
            err = db_commit(db) ? GW_EIO : db_begin(db, true);
    }
    must("insert", err ? err : db_commit(db), db_error(db));
}

static void fill(struct bench *bench, int64_t keys)
{
    char error[256] = "";
    struct db *db = NULL;
    open_store(bench);
    store_close(bench->store);
    must("db_open", db_open(bench->file, 0, &db, error, sizeof error), error);
    double start = now_ms();
    fill_rows(db, keys, keys / 4);
    db_close(db);
    printf("filled %lld keys and %lld users in %.1f s\n", (long long)keys, (long long)keys / 4,
           (now_ms() - start) / 1e3);
}

static struct log_record log_record_of(int64_t number, int64_t created_ms)
{
    static const char *const models[] = {"gpt-5.1",          "gpt-5.1-mini", "claude-sonnet-4-5",
                                         "claude-haiku-4-5", "gemini-3-pro", "rare-model"};
    uint64_t mixed = (uint64_t)number * UINT64_C(0x9e3779b97f4a7c15) >> 20;
    size_t model = mixed % 5000 == 0 ? 5 : mixed % 5;
    struct log_record record = {
        .created_ms = created_ms,
        .key_id = 1 + (int64_t)(mixed / 8 % 1000),
        .user_id = 1 + (int64_t)(mixed / 8 % 250),
        .upstream_id = mixed % 3000 == 0 ? 9 : 1 + (int64_t)(mixed % 8),
        .request_id = SLICE_LIT("01a7c3f0-5b1e-7c44-9a02-6b8f6d7f2d11"),
        .client_ip = SLICE_LIT("203.0.113.77"),
        .method = SLICE_LIT("POST"),
        .path = SLICE_LIT("/v1/chat/completions"),
        .dialect = SLICE_LIT("openai"),
        .model = slice_str(models[model]),
        .upstream_model = slice_str(models[model]),
        .finish = SLICE_LIT("stop"),
        .key_prefix = SLICE_LIT("sk-bench-000"),
        .user_agent = SLICE_LIT("OpenAI/Python 1.59.6"),
        .status = mixed % 50 == 0     ? 503
                  : mixed % 2000 == 1 ? 429
                                      : 200,
        .duration_ms = 815,
        .is_success = mixed % 50 != 0,
        .bytes_in = 1033,
        .bytes_out = 1270,
        .usage = {.input = 261, .output = 133, .flags = USAGE_REPORTED},
        .cost_nano = 1234567,
        .price_version = 3,
    };
    must("id", id_new(&record.id), "");
    return record;
}

static void push_record(struct journal *journal, const struct log_record *record)
{
    static struct buf bytes;
    buf_clear(&bytes);
    must("encode", log_record_encode(record, &bytes), "");
    int err;
    while ((err = journal_push(journal, JOURNAL_LOG, buf_slice(&bytes), NULL)) == GW_EFULL)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    must("journal_push", err, "");
}

static int on_any(void *user, const struct db_value *row, size_t count)
{
    (void)user;
    (void)row;
    (void)count;
    return 0;
}

// A reader that stays keeps the journal's WAL from being emptied.
static void hold_journal(const char *file)
{
    char path[1024], error[256] = "";
    struct db *db = NULL;
    size_t len = strlen(file);
    snprintf(path, sizeof path, "%.*s-journal.db", (int)(len > 3 ? len - 3 : 0), file);
    must("db_open", db_open(path, DB_OPEN_READONLY, &db, error, sizeof error), error);
    must("begin", db_begin(db, false), db_error(db));
    must("read", db_each(db, SLICE_LIT("SELECT max(seq) FROM journal"), NULL, 0, on_any, NULL),
         db_error(db));
}

// A child pushes, with nobody who folds, and dies as soon as that much is committed.
static void backlog(struct bench *bench, int64_t mib)
{
    pid_t child = fork();
    if (child == 0) {
        struct journal_view view;
        open_store(bench);
        struct journal *journal = store_journal(bench->store);
        must("journal_flush", journal_flush(journal, 600000), "");
        hold_journal(bench->file);
        journal_hand_over(journal);
        // A row is about 260 bytes in the journal.
        int64_t records = mib * (1 << 20) / 260;
        for (int64_t i = 0; i < records; i++) {
            struct log_record record = log_record_of(i, clock_wall_ms());
            push_record(journal, &record);
        }
        do {
            nanosleep(&(struct timespec){0, 1000000}, NULL);
            journal_read_view(journal, &view);
        } while (view.queued_records > 0);
        printf("left %lld records unapplied\n",
               (long long)(view.committed_seq - view.applied_logs_seq));
        fflush(NULL);
        _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        fail("backlog", 0, "the child failed");
}

// ---- measuring

struct waiter {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool is_done;
};

static void on_done(struct store_job *job)
{
    struct waiter *waiter = ((struct admin_job *)job)->user;
    pthread_mutex_lock(&waiter->mutex);
    waiter->is_done = true;
    pthread_cond_signal(&waiter->changed);
    pthread_mutex_unlock(&waiter->mutex);
}

// Runs a verb; gives its time. uid, when not NULL, gets the row's; total the list's.
static double call(struct bench *bench, enum admin_verb verb, const char *request, char uid[64],
                   struct sha256 *hash, int64_t *total)
{
    struct waiter waiter = {.is_done = false};
    struct json_doc *doc = NULL;
    const char *why = NULL;
    size_t at = 0;
    pthread_mutex_init(&waiter.mutex, NULL);
    pthread_cond_init(&waiter.changed, NULL);
    struct admin_job *job = admin_job_new(bench->store, verb, slice_str(request));
    if (!job)
        fail("admin_job_new", 0, "");
    job->job.done = on_done;
    job->user = &waiter;
    double start = now_ms();
    must("submit", store_submit(bench->store, &job->job), "");
    pthread_mutex_lock(&waiter.mutex);
    while (!waiter.is_done)
        pthread_cond_wait(&waiter.changed, &waiter.mutex);
    pthread_mutex_unlock(&waiter.mutex);
    double took = now_ms() - start;
    must(request, job->job.err, job->job.error);
    must("answer", json_parse(job->result_json, 64u << 20, &doc, &why, &at), why ? why : "");
    if (uid)
        snprintf(uid, 64, "%s", yyjson_get_str(yyjson_obj_get(json_root(doc), "uid")));
    const char *key = yyjson_get_str(yyjson_obj_get(json_root(doc), "key_value"));
    if (hash && key)
        must("sha256", secret_sha256(slice_str(key), hash), "");
    if (total)
        must("total", json_get_i64(yyjson_obj_get(json_root(doc), "total"), total), "");
    json_doc_free(doc);
    admin_job_free(job);
    pthread_cond_destroy(&waiter.changed);
    pthread_mutex_destroy(&waiter.mutex);
    return took;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// CPU time of the process: what an undisturbed machine would take.
static double cpu_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static void print_times(const char *name, double *times, size_t count)
{
    qsort(times, count, sizeof *times, compare);
    printf("%-34s p50 %8.2f ms  p95 %8.2f ms  p99 %8.2f ms  max %8.2f ms\n", name, times[count / 2],
           times[count * 95 / 100], times[count * 99 / 100], times[count - 1]);
}

static atomic_bool stop;

static void *load_run(void *arg)
{
    struct bench *bench = arg;
    struct journal *journal = store_journal(bench->store);
    for (int64_t i = 0; !atomic_load(&stop); i++) { // about 5,000 exchanges a second
        struct log_record record = log_record_of(i, clock_wall_ms());
        push_record(journal, &record);
        if (i % 25 == 24)
            nanosleep(&(struct timespec){0, 5000000}, NULL);
    }
    return NULL;
}

static bool is_open(struct bench *bench, struct epoch_reader *reader, const struct sha256 *hash)
{
    epoch_enter(reader);
    const struct key_entry *key = directory_key(store_directory(bench->store), hash);
    bool result = key && key->is_active;
    epoch_leave(reader);
    return result;
}

static void measure_changes(struct bench *bench, size_t changes)
{
    static double create[SAMPLES_MAX], change[SAMPLES_MAX], revoke[SAMPLES_MAX];
    struct epoch_reader *reader = epoch_register(bench->epoch);
    size_t wrong = 0;
    pthread_t load;
    char request[256], uid[64];
    if (pthread_create(&load, NULL, load_run, bench) != 0)
        fail("thread", 0, "");
    for (size_t i = 0; i < changes; i++) {
        struct sha256 hash = {{0}};
        create[i] = call(bench, ADMIN_KEY_CREATE, "{\"name\":\"bench\"}", uid, &hash, NULL);
        wrong += !is_open(bench, reader, &hash);
        snprintf(request, sizeof request, "{\"uid\":\"%s\",\"name\":\"other\",\"rpm\":5}", uid);
        change[i] = call(bench, ADMIN_KEY_UPDATE, request, NULL, NULL, NULL);
        snprintf(request, sizeof request, "{\"uid\":\"%s\"}", uid);
        revoke[i] = call(bench, ADMIN_KEY_REVOKE, request, NULL, NULL, NULL);
        wrong += is_open(bench, reader, &hash);
    }
    atomic_store(&stop, true);
    pthread_join(load, NULL);
    epoch_unregister(reader);
    print_times("create, 5,000 log records/s beside", create, changes);
    print_times("change", change, changes);
    print_times("revoke", revoke, changes);
    printf("answers that the directory did not follow: %zu\n", wrong);
}

static void measure_lookups(struct bench *bench, int64_t keys)
{
    enum { ROUNDS = 300000 };
    static struct sha256 hashes[ROUNDS];
    size_t found = 0;
    for (int64_t i = 0; i < ROUNDS; i++)
        hashes[i] =
            key_hash(1 + (int64_t)((uint64_t)i * UINT64_C(0x9e3779b97f4a7c15) >> 16) % keys);
    uint64_t start = clock_boot_ns();
    for (int64_t i = 0; i < ROUNDS; i++)
        found += directory_key(store_directory(bench->store), &hashes[i]) != NULL;
    printf("look-up of a random key: %.0f ns, %zu of %d found\n",
           (double)(clock_boot_ns() - start) / ROUNDS, found, ROUNDS);
}

static void measure_lists(struct bench *bench)
{
    static const struct {
        const char *name, *request;
    } lists[] = {
        {"keys: first page", "{}"},
        {"keys: page 1,000", "{\"page\":1000}"},
        {"keys: of a user", "{\"user_id\":7}"},
        {"keys: not active", "{\"is_active\":false}"},
        {"keys: search", "{\"search\":\"service 77777\"}"},
    };
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        double times[5];
        int64_t total = 0;
        for (size_t k = 0; k < 5; k++)
            times[k] = call(bench, ADMIN_KEY_LIST, lists[i].request, NULL, NULL, &total);
        qsort(times, 5, sizeof *times, compare);
        printf("%-34s %8.2f ms, total %lld\n", lists[i].name, times[2], (long long)total);
    }
}

static void measure(struct bench *bench, size_t changes)
{
    double before = resident_mb(), cpu = cpu_ms(), start = now_ms();
    open_store(bench);
    double ready = now_ms() - start, after = resident_mb();
    cpu = cpu_ms() - cpu;
    struct journal_view view;
    journal_read_view(store_journal(bench->store), &view);
    int64_t keys = (int64_t)directory_key_count(store_directory(bench->store));
    printf("%lld keys: ready after %.0f ms (CPU %.0f ms) with %lld records to apply; RSS %.1f → "
           "%.1f MB\n",
           (long long)keys, ready, cpu, (long long)(view.committed_seq - view.applied_logs_seq),
           before, after);
    if (keys > 0) {
        printf("RSS per key, users beside them included: %.0f bytes\n",
               (after - before) * 1e6 / (double)keys);
        measure_lookups(bench, keys);
    }
    if (changes > 0)
        measure_changes(bench, changes);
    start = now_ms();
    must("journal_flush", journal_flush(store_journal(bench->store), 600000), "");
    printf("all applied %.0f ms later\n", now_ms() - start);
    measure_lists(bench);
    store_close(bench->store);
}

static void logs(struct bench *bench, int64_t rows)
{
    open_store(bench);
    int64_t now = clock_wall_ms();
    double start = now_ms();
    for (int64_t i = 0; i < rows; i++) { // of the last thirty days
        struct log_record record = log_record_of(i, now - 30 * DAY_MS + 30 * DAY_MS / rows * i);
        push_record(store_journal(bench->store), &record);
    }
    must("journal_flush", journal_flush(store_journal(bench->store), 600000), "");
    if (rows)
        printf("%lld rows applied in %.1f s\n", (long long)rows, (now_ms() - start) / 1e3);
    static const struct {
        const char *name, *text;
    } filters[] = {
        {"no filter", ""},
        {"page 10,000", "\"page\":10000"},
        {"status 200", "\"status\":200"},
        {"status 503 (2 %)", "\"status\":503"},
        {"status 429 (0.05 %)", "\"status\":429"},
        {"status 418 (none)", "\"status\":418"},
        {"status 201 (none)", "\"status\":201"},
        {"model, a fifth", "\"model\":\"gpt-5.1\""},
        {"model, rare", "\"model\":\"rare-model\""},
        {"model, unknown", "\"model\":\"nothing\""},
        {"model and status 503", "\"model\":\"gpt-5.1\",\"status\":503"},
        {"user (0.4 %)", "\"user_id\":7"},
        {"user and model and status 200", "\"user_id\":7,\"model\":\"gpt-5.1\",\"status\":200"},
        {"a day", "\"start_ms\":%lld,\"end_ms\":%lld"},
        {"a day and status 200, page 1,000", "\"page\":1000,\"status\":200,\"start_ms\":%lld"},
        {"a thousand rows", "\"page_size\":1000,\"model\":\"gpt-5.1\""},
    };
    static double all[SAMPLES_MAX], all_cpu;
    size_t count = 0;
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        char members[256], request[300];
        double times[20], cpu = cpu_ms();
        int64_t total = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(members, sizeof members, filters[i].text, (long long)(now - 5 * DAY_MS),
                 (long long)(now - 4 * DAY_MS));
#pragma GCC diagnostic pop
        snprintf(request, sizeof request, "{%s}", members);
        for (size_t k = 0; k < 20; k++)
            all[count++] = times[k] = call(bench, ADMIN_LOG_LIST, request, NULL, NULL, &total);
        char name[64];
        cpu = (cpu_ms() - cpu) / 20;
        all_cpu += cpu;
        snprintf(name, sizeof name, "%s: %lld", filters[i].name, (long long)total);
        printf("CPU %6.2f ms  ", cpu);
        print_times(name, times, 20);
    }
    printf("CPU %6.2f ms  ", all_cpu / (double)(sizeof filters / sizeof *filters));
    print_times("all", all, count);
    store_close(bench->store);
}

int main(int argc, char **argv)
{
    struct bench bench = {0};
    const char *verb = argc > 2 ? argv[1] : "";
    int64_t number = argc > 3 ? atoll(argv[3]) : -1;
    log_set_level(LOG_ERROR);
    if (argc > 2)
        prepare(&bench, argv[2]);
    if (strcmp(verb, "fill") == 0 && number > 0)
        fill(&bench, number);
    else if (strcmp(verb, "backlog") == 0 && number > 0)
        backlog(&bench, number);
    else if (strcmp(verb, "measure") == 0 && number < SAMPLES_MAX)
        measure(&bench, number < 0 ? 300 : (size_t)number);
    else if (strcmp(verb, "logs") == 0)
        logs(&bench, number < 0 ? 0 : number);
    else {
        fprintf(stderr, "bench_keys fill|backlog|measure|logs FILE [NUMBER]\n");
        return 2;
    }
    epoch_destroy(bench.epoch);
    fernet_free(bench.fernet);
    conf_free(bench.conf);
    return 0;
}

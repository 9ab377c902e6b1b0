// Many keys in a database: what opening and changing cost, counted in work rather than in time, and
// the lists that an administrator sees.
#include "base/clock.h"
#include "base/id.h"
#include "codec/secret.h"
#include "state/admin.h"
#include "store_test.h"
#include <pthread.h>

enum { KEYS = 50000, USERS = 12500 };

static struct test_store test;
static struct epoch_reader *reader;

static struct sha256 hash_of(int64_t number)
{
    char text[48];
    struct sha256 hash;
    snprintf(text, sizeof text, "sk-many-%032lld", (long long)number);
    ck_assert_int_eq(secret_sha256(slice_str(text), &hash), 0);
    return hash;
}

static void fill(void)
{
    char error[256] = "";
    struct db *db = NULL;
    ck_assert_int_eq(db_open(test_store_file(&test, "main.db"), 0, &db, error, sizeof error), 0);
    ck_assert_int_eq(db_begin(db, true), 0);
    for (int64_t i = 1; i <= KEYS; i++) {
        char name[48], uid[37];
        struct gw_id id;
        struct sha256 hash = hash_of(i);
        ck_assert_int_eq(id_new_random(&id), 0);
        id_format(&id, uid);
        snprintf(name, sizeof name, "name %lld", (long long)i);
        const struct db_value args[] = {
            DB_INT_VALUE(i),
            DB_TEXT_VALUE(slice_str(uid)),
            DB_BLOB_VALUE(slice_of((const char *)hash.bytes, sizeof hash.bytes)),
            DB_TEXT_VALUE(slice_str(name)),
            i % 4 ? DB_NULL_VALUE : DB_INT_VALUE(i / 4),
            DB_INT_VALUE(i % 100 != 0),
        };
        if (i <= USERS)
            ck_assert_int_eq(db_run(db,
                                    SLICE_LIT("INSERT INTO users (id, username, created_ms, "
                                              "updated_ms) VALUES (?, 'u' || ?1, 1, 1)"),
                                    args, 1, NULL, 0, NULL),
                             0);
        ck_assert_int_eq(
            db_run(db,
                   SLICE_LIT("INSERT INTO api_keys (id, uid, key_hash, key_prefix, name, user_id, "
                             "is_active, created_ms, updated_ms) "
                             "VALUES (?1, ?2, ?3, 'sk-many-0000', ?4, NULL, ?6, ?1, 1)"),
                   args, 6, NULL, 0, NULL),
            0);
        if (args[4].kind == DB_INT)
            ck_assert_int_eq(db_run(db, SLICE_LIT("UPDATE api_keys SET user_id = ?2 WHERE id = ?1"),
                                    (const struct db_value[]){args[0], args[4]}, 2, NULL, 0, NULL),
                             0);
    }
    ck_assert_int_eq(db_commit(db), 0);
    db_close(db);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool is_done;

static void on_done(struct store_job *job)
{
    (void)job;
    pthread_mutex_lock(&mutex);
    is_done = true;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
}

// Gives a number of the answer, or 0; uid, when not NULL, gets that member.
static int64_t call(enum admin_verb verb, const char *request, const char *number, char uid[40])
{
    int64_t value = 0;
    struct admin_job *job = admin_job_new(test.store, verb, slice_str(request));
    ck_assert_ptr_nonnull(job);
    job->job.done = on_done;
    is_done = false;
    ck_assert_int_eq(store_submit(test.store, &job->job), 0);
    pthread_mutex_lock(&mutex);
    while (!is_done)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    ck_assert_msg(job->job.err == 0, "%s: %s", request, job->job.error);
    char name[40], *text = arena_copyz(job->arena, job->result_json), *found;
    snprintf(name, sizeof name, "\"%s\":", number);
    if ((found = strstr(text, name)))
        value = atoll(found + strlen(name));
    if (uid && (found = strstr(text, "\"uid\":\"")))
        snprintf(uid, 40, "%.36s", found + 7);
    admin_job_free(job);
    return value;
}

START_TEST(many_keys_open_and_change_with_little_work)
{
    struct directory_work opened, after;
    test_store_prepare(&test);
    test_store_open(&test);
    test_store_close(&test);
    fill();
    test_store_open(&test);
    reader = epoch_register(test.epoch);
    struct directory *directory = store_directory(test.store);
    ck_assert_uint_eq(directory_key_count(directory), KEYS);
    // Room was made once, before the first entry.
    directory_read_work(directory, &opened);
    ck_assert_uint_eq(opened.moved, 0);
    ck_assert_uint_lt(opened.longest_probe, 100);
    epoch_enter(reader);
    struct sha256 hash = hash_of(777);
    const struct key_entry *key = directory_key(directory, &hash), *other;
    ck_assert(key && key->id == 777 && key->is_active);
    hash = hash_of(778);
    other = directory_key(directory, &hash);
    hash = hash_of(700);
    ck_assert(directory_key(directory, &hash)->user_id == 175);
    ck_assert(!directory_key(directory, &hash)->is_active);
    ck_assert(slice_is(directory_user(directory, 175)->name, "u175"));
    epoch_leave(reader);

    // A change replaces one entry and leaves the others where they are.
    char uid[40] = "", request[128];
    call(ADMIN_KEY_LIST, "{\"search\":\"name 777\",\"page_size\":1,\"page\":11}", "total", uid);
    ck_assert_int_eq(strlen(uid), 36);
    for (int i = 0; i < 50; i++) {
        int64_t id = call(ADMIN_KEY_CREATE, "{\"name\":\"new\"}", "id", uid);
        ck_assert_int_eq(id, KEYS + 1 + i);
        snprintf(request, sizeof request, "{\"uid\":\"%s\"}", uid);
        epoch_enter(reader);
        ck_assert(directory_key_by_id(directory, id)->is_active);
        epoch_leave(reader);
        call(ADMIN_KEY_REVOKE, request, "id", NULL);
        epoch_enter(reader);
        ck_assert(!directory_key_by_id(directory, id)->is_active);
        epoch_leave(reader);
    }
    directory_read_work(directory, &after);
    ck_assert_uint_eq(after.moved, 0);
    ck_assert_uint_eq(after.grown, opened.grown);
    epoch_enter(reader);
    hash = hash_of(778);
    ck_assert_ptr_eq(directory_key(directory, &hash), other);
    epoch_leave(reader);

    ck_assert_int_eq(call(ADMIN_KEY_LIST, "{}", "total", NULL), KEYS + 50);
    ck_assert_int_eq(call(ADMIN_KEY_LIST, "{\"is_active\":false}", "total", NULL), KEYS / 100 + 50);
    ck_assert_int_eq(call(ADMIN_KEY_LIST, "{\"user_id\":175}", "total", NULL), 1);
    ck_assert_int_eq(call(ADMIN_KEY_LIST, "{\"user_id\":175,\"is_active\":true}", "total", NULL),
                     0);
    ck_assert_int_eq(call(ADMIN_KEY_LIST, "{\"search\":\"NAME 777\"}", "total", NULL), 11);
    epoch_unregister(reader);
    test_store_end(&test);
}
END_TEST

TEST_MAIN("many_keys", many_keys_open_and_change_with_little_work)

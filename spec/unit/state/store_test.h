#pragma once
// A store in a fresh folder, for tests.
#include "base/arena.h"
#include "codec/fernet.h"
#include "state/conf.h"
#include "state/store.h"
#include "state_test.h"

#define TEST_KEY "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="

struct test_store {
    struct test_dir dir;
    struct conf *conf;
    struct fernet *fernet;
    struct epoch *epoch;
    struct store *store;
    char error[256];
};

static inline void test_conf_set(struct conf *conf, const char *path, const char *text)
{
    char why[256];
    int err = conf_set(conf, conf_key_find(slice_str(path)), slice_str(text), why, sizeof(why));
    ck_assert_msg(err == 0, "%s", why);
}

static inline void test_store_prepare(struct test_store *test)
{
    char url[128];
    memset(test, 0, sizeof(*test));
    test_dir_make(&test->dir);
    ck_assert_int_eq(conf_new(&test->conf), 0);
    snprintf(url, sizeof(url), "sqlite:///%s/data/main.db", test->dir.path);
    test_conf_set(test->conf, "database_url", url);
    test_conf_set(test->conf, "durability", "process");
    ck_assert_int_eq(fernet_new(SLICE_LIT(TEST_KEY), &test->fernet, NULL), 0);
    test->epoch = epoch_new(8);
}

static inline int test_store_try(struct test_store *test, bool is_tool)
{
    const struct store_options options = {
        .conf = test->conf,
        .fernet = test->fernet,
        .epoch = test->epoch,
        .migrations_dir = MOONGATE_SOURCE_DIR "/schema",
        .is_tool = is_tool,
    };
    test->store = NULL;
    return store_open(&options, &test->store, test->error, sizeof(test->error));
}

static inline void test_store_open(struct test_store *test)
{
    int err = test_store_try(test, false);
    ck_assert_msg(err == 0, "%d %s", err, test->error);
}

static inline void test_store_close(struct test_store *test)
{
    store_close(test->store);
    test->store = NULL;
}

static inline void test_store_end(struct test_store *test)
{
    store_close(test->store);
    epoch_destroy(test->epoch);
    fernet_free(test->fernet);
    conf_free(test->conf);
    test_dir_clear(test->dir.path);
}

static inline const char *test_store_file(struct test_store *test, const char *name)
{
    char path[80];
    snprintf(path, sizeof(path), "data/%s", name);
    return test_dir_file(&test->dir, path);
}

// One number from a file that the store may have open.
static inline int64_t test_query(struct test_store *test, const char *file, const char *sql)
{
    char error[256] = "";
    struct db *db = NULL;
    struct db_rows rows = {0};
    struct arena *arena = arena_new(4096);
    int err = db_open(test_store_file(test, file), 0, &db, error, sizeof(error));
    ck_assert_msg(err == 0, "%s", error);
    err = db_run(db, slice_str(sql), NULL, 0, arena, 0, &rows);
    ck_assert_msg(err == 0, "%s: %s", sql, db_error(db));
    int64_t number = rows.row_count && rows.values[0].kind == DB_INT ? rows.values[0].integer : 0;
    arena_free(arena);
    db_close(db);
    return number;
}

static inline void test_exec(struct test_store *test, const char *file, const char *sql)
{
    (void)test_query(test, file, sql);
}

// The store: files and their faults, lanes, lease, migrations, import, publication.
#include "base/clock.h"
#include "codec/secret.h"
#include "store_test.h"
#include <fcntl.h>
#include <semaphore.h>
#include <sys/stat.h>
#include <sys/wait.h>

static struct test_store test;

static int insert_key(struct db *db, struct store_job *job)
{
    (void)job;
    struct sha256 hash;
    ck_assert_int_eq(secret_sha256(SLICE_LIT("key-a"), &hash), 0);
    struct db_value args[] = {DB_BLOB_VALUE(slice_of((char *)hash.bytes, 32))};
    int err =
        db_run(db,
               SLICE_LIT("INSERT INTO api_keys (id, uid, key_hash, key_prefix, name, "
                         "has_upstream_list, allowed_models, rpm, created_ms, updated_ms) "
                         "VALUES (5, 'uid-5', ?, 'sk-auto-abcd', 'n', 1, '[\"gpt-*\"]', 60, 1, "
                         "1)"),
               args, 1, NULL, 0, NULL);
    if (err == 0)
        err = db_run(db, SLICE_LIT("INSERT INTO api_key_upstreams VALUES (5, 1, 1)"), NULL, 0, NULL,
                     0, NULL);
    return err ? err
               : db_run(db, SLICE_LIT("INSERT INTO changes (kind, id, at_ms) VALUES ('key', 5, 1)"),
                        NULL, 0, NULL, 0, NULL);
}

static int fail_after_insert(struct db *db, struct store_job *job)
{
    ck_assert_int_eq(insert_key(db, job), 0);
    return db_run(db, SLICE_LIT("SELECT nothing FROM nowhere"), NULL, 0, NULL, 0, NULL);
}

static int drop_key(struct db *db, struct store_job *job)
{
    (void)job;
    int err = db_run(db, SLICE_LIT("DELETE FROM api_keys WHERE id = 5"), NULL, 0, NULL, 0, NULL);
    return err ? err
               : db_run(db, SLICE_LIT("INSERT INTO changes (kind, id, at_ms) VALUES ('key', 5, 1)"),
                        NULL, 0, NULL, 0, NULL);
}

static void prepare_with_upstreams(void)
{
    test_store_prepare(&test);
    test.conf->upstreams_json =
        SLICE_LIT("[{\"name\":\"a\",\"provider\":\"openai\",\"base_url\":\"https://a.example/v1\","
                  "\"api_key\":\"sk-provider-secret-1\",\"models\":[\"gpt-*\"],\"is_default\":true,"
                  "\"timeout\":30},"
                  "{\"name\":\"b\",\"provider\":\"anthropic\",\"base_url\":\"https://b.example\","
                  "\"models\":{\"opus\":\"claude-opus\"},\"weight\":7,\"priority\":-2,"
                  "\"formats\":[\"claude\",\"openai\"],\"disconnect\":\"drain\","
                  "\"config\":{\"region\":\"x\"}}]");
}

START_TEST(a_write_is_published_before_its_done)
{
    prepare_with_upstreams();
    test_store_open(&test);
    struct epoch_reader *reader = epoch_register(test.epoch);
    struct sha256 hash;
    ck_assert_int_eq(secret_sha256(SLICE_LIT("key-a"), &hash), 0);
    ck_assert_int_eq(store_run(test.store, STORE_WRITE, fail_after_insert), GW_EINVAL);
    epoch_enter(reader);
    ck_assert_ptr_null(directory_key(store_directory(test.store), &hash));
    epoch_leave(reader);
    ck_assert_int_eq(store_run(test.store, STORE_WRITE, insert_key), 0);
    epoch_enter(reader);
    const struct key_entry *key = directory_key(store_directory(test.store), &hash);
    ck_assert_ptr_nonnull(key);
    ck_assert_int_eq(key->id, 5);
    ck_assert(key->is_active && key->has_upstream_list);
    ck_assert_uint_eq(key->upstream_count, 1);
    ck_assert_int_eq(key_entry_upstream_ids(key)[0], 1);
    ck_assert_uint_eq(key->allowed_model_count, 1);
    ck_assert(slice_is(key_entry_model(key, 0), "gpt-*"));
    ck_assert_int_eq(key->rpm, 60);
    epoch_leave(reader);
    // The same from the file.
    test_store_close(&test);
    test_store_open(&test);
    epoch_enter(reader);
    key = directory_key_by_id(store_directory(test.store), 5);
    ck_assert_ptr_nonnull(key);
    ck_assert_uint_eq(key->upstream_count, 1);
    char uid[37];
    key_entry_uid(key, uid);
    ck_assert_str_eq(uid, "uid-5");
    epoch_leave(reader);
    ck_assert_int_eq(store_run(test.store, STORE_WRITE, drop_key), 0);
    epoch_enter(reader);
    ck_assert_ptr_null(directory_key(store_directory(test.store), &hash));
    epoch_leave(reader);
    epoch_unregister(reader);
    test_store_end(&test);
}
END_TEST

START_TEST(upstreams_are_imported_once_and_encrypted)
{
    prepare_with_upstreams();
    test_store_open(&test);
    struct arena *arena = arena_new(1024);
    const struct catalogue *catalogue = catalogue_get(store_catalogue(test.store));
    ck_assert_uint_eq(catalogue->upstream_count, 2);
    const struct upstream *a = catalogue_upstream_named(catalogue, SLICE_LIT("a"));
    const struct upstream *b = catalogue_upstream_named(catalogue, SLICE_LIT("b"));
    ck_assert(slice_is(secret_reveal(a->api_key), "sk-provider-secret-1"));
    ck_assert(a->speaks[DIALECT_OPENAI] && a->speaks[DIALECT_RESPONSES] &&
              !a->speaks[DIALECT_ANTHROPIC]);
    ck_assert(a->is_default && a->first_byte_ms == 30000 && a->weight == 50);
    ck_assert(slice_is(catalogue_model_for(a, SLICE_LIT("gpt-5"), arena), "gpt-5"));
    ck_assert_ptr_null(b->api_key);
    ck_assert(b->speaks[DIALECT_OPENAI] && b->speaks[DIALECT_ANTHROPIC] && b->drains_on_disconnect);
    ck_assert(b->weight == 7 && b->priority == -2 && !b->is_default);
    ck_assert(slice_is(b->config_json, "{\"region\":\"x\"}"));
    ck_assert(slice_is(catalogue_model_for(b, SLICE_LIT("opus"), arena), "claude-opus"));
    ck_assert_ptr_eq(catalogue_upstream(catalogue, b->id), b);
    ck_assert_ptr_eq(b->health, health_slot_of(store_health(test.store), b->id));
    arena_free(arena);
    ck_assert_int_eq(test_query(&test, "main.db",
                                "SELECT count(*) FROM upstreams WHERE api_key_enc LIKE 'gAAAA%' "
                                "AND key_mask = 'sk-***et-1'"),
                     1);
    test_store_close(&test);
    // A second start imports nothing; another ring of keys breaks the upstream, visibly.
    fernet_free(test.fernet);
    ck_assert_int_eq(
        fernet_new(SLICE_LIT("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="), &test.fernet, NULL),
        0);
    log_set_level(LOG_ERROR);
    test_store_open(&test);
    catalogue = catalogue_get(store_catalogue(test.store));
    ck_assert_uint_eq(catalogue->upstream_count, 2);
    a = catalogue_upstream_named(catalogue, SLICE_LIT("a"));
    ck_assert(a->is_broken && !a->api_key);
    ck_assert(!catalogue_upstream_named(catalogue, SLICE_LIT("b"))->is_broken);
    test_store_end(&test);
}
END_TEST

START_TEST(a_bad_import_names_entry_and_field)
{
    static const struct {
        const char *json, *text;
    } cases[] = {
        {"{}", "UPSTREAMS: must be a list"},
        {"[", "UPSTREAMS: not JSON"},
        {"[{\"name\":\"a\",\"base_url\":\"https://x\"},{\"name\":\"b\"}]",
         "entry 2: base_url is missing"},
        {"[{\"base_url\":\"https://x\"}]", "entry 1: name is missing"},
        {"[{\"name\":\"a\",\"base_url\":\"ftp://x\"}]", "entry 1: base_url must be an http"},
        {"[{\"name\":\"a\",\"base_url\":\"https://x\",\"wieght\":1}]",
         "entry 1: wieght is unknown"},
        {"[{\"name\":\"a\",\"base_url\":\"https://x\",\"weight\":0}]", "entry 1: weight must be"},
        {"[{\"name\":\"a\",\"base_url\":\"https://x\",\"formats\":[\"grpc\"]}]",
         "entry 1: formats must"},
        {"[{\"name\":\"a\",\"base_url\":\"https://x\",\"models\":[1]}]", "entry 1: models must"},
        {"[{\"name\":\"a\",\"base_url\":\"https://x\",\"timeout\":9999}]", "entry 1: timeout must"},
        {"[{\"name\":\"a\",\"base_url\":\"https://x\"},{\"name\":\"a\",\"base_url\":\"https://"
         "x\"}]",
         "entry 2: name is used twice"},
        {"[{\"name\":\"a\",\"base_url\":\"https://"
         "x\",\"is_default\":true},{\"name\":\"b\",\"base_url\":"
         "\"https://x\",\"is_default\":true}]",
         "entry 2: is_default is set twice"},
        {"[7]", "entry 1:"},
    };
    test_store_prepare(&test);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        test.conf->upstreams_json = slice_str(cases[i].json);
        ck_assert_int_ne(test_store_try(&test, false), 0);
        ck_assert_msg(strstr(test.error, cases[i].text), "%s: %s", cases[i].json, test.error);
        ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM upstreams"), 0);
    }
    test.conf->upstreams_json = SLICE_LIT("");
    test_conf_set(test.conf, "upstream.url", "https://one.example/v1");
    test_conf_set(test.conf, "upstream.api_key", "sk-some-secret");
    test_store_open(&test);
    const struct catalogue *catalogue = catalogue_get(store_catalogue(test.store));
    ck_assert_uint_eq(catalogue->upstream_count, 1);
    ck_assert(catalogue->upstreams[0].is_default);
    ck_assert(slice_is(secret_reveal(catalogue->upstreams[0].api_key), "sk-some-secret"));
    test_store_end(&test);
}
END_TEST

START_TEST(files_have_modes_and_one_owner)
{
    struct stat info;
    static const char *const files[] = {"main.db", "main-logs.db", "main-journal.db",
                                        "main.db.lock"};
    test_store_prepare(&test);
    test_store_open(&test);
    ck_assert_int_eq(store_owner_epoch(test.store), 1);
    for (size_t i = 0; i < 4; i++) {
        ck_assert_int_eq(stat(test_store_file(&test, files[i]), &info), 0);
        ck_assert_msg((info.st_mode & 0777) == 0600, "%s", files[i]);
    }
    ck_assert_int_eq(stat(test_dir_file(&test.dir, "data"), &info), 0);
    ck_assert_int_eq(info.st_mode & 0777, 0700);
    // A second owner is refused, also inside one process: the lock is on the open file.
    struct store *first = test.store;
    ck_assert_int_eq(test_store_try(&test, false), GW_EBUSY);
    ck_assert_ptr_nonnull(strstr(test.error, "pid"));
    // A tool may look.
    ck_assert_int_eq(test_store_try(&test, true), 0);
    ck_assert_ptr_null(store_journal(test.store));
    ck_assert_int_eq(store_run(test.store, STORE_WRITE, insert_key), GW_EBUSY);
    store_close(test.store);
    test.store = first;
    test_store_close(&test);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT is_held FROM leases"), 0);
    test_store_open(&test);
    ck_assert_int_eq(store_owner_epoch(test.store), 2);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT is_held FROM leases"), 1);
    test_store_end(&test);
}
END_TEST

static void cut_file(const char *path, off_t size)
{
    ck_assert_int_eq(truncate(path, size), 0);
}

START_TEST(damaged_files_are_named_and_never_replaced)
{
    struct stat before, after;
    static const char *const files[] = {"main.db", "main-logs.db", "main-journal.db"};
    for (int file = 0; file < 3; file++) {
        for (int damage = 0; damage < 5; damage++) {
            test_store_prepare(&test);
            test_store_open(&test);
            test_store_close(&test);
            const char *path = test_store_file(&test, files[file]);
            ck_assert_int_eq(stat(path, &before), 0);
            if (damage == 0)
                cut_file(path, 0);
            else if (damage == 1)
                cut_file(path, before.st_size / 2);
            else if (damage == 2)
                test_write_file(path, "something else entirely, written over the file by mistake; "
                                      "long enough to have a head of one hundred bytes and more.");
            else if (damage == 3)
                test_exec(&test, files[file], "PRAGMA application_id = 7");
            else {
                // A page of zeroes in the middle.
                char zeros[4096] = {0};
                int fd = open(path, O_RDWR);
                ck_assert_int_eq(pwrite(fd, zeros, sizeof(zeros), 4096), sizeof(zeros));
                close(fd);
            }
            ck_assert_int_eq(stat(path, &before), 0);
            int err = test_store_try(&test, false);
            ck_assert_msg(err == GW_ECORRUPT, "%s %d: %d %s", files[file], damage, err, test.error);
            ck_assert_msg(strstr(test.error, files[file]) && strstr(test.error, "restore"), "%s",
                          test.error);
            ck_assert_int_eq(stat(path, &after), 0);
            ck_assert_int_eq(before.st_size, after.st_size);
            test_store_end(&test);
        }
    }
    test_store_prepare(&test);
    test_store_open(&test);
    test_store_close(&test);
    ck_assert_int_eq(unlink(test_store_file(&test, "main.db")), 0);
    ck_assert_int_eq(test_store_try(&test, false), GW_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(test.error, "is missing"));
    ck_assert_int_ne(access(test_store_file(&test, "main.db"), F_OK), 0);
    test_store_end(&test);
}
END_TEST

START_TEST(migrations_are_recorded_checked_and_backed_up)
{
    struct test_dir schema;
    char command[512];
    test_dir_make(&schema);
    snprintf(command, sizeof(command), "cp -r %s/schema/main %s/schema/logs %s/schema/journal %s",
             MOONGATE_SOURCE_DIR, MOONGATE_SOURCE_DIR, MOONGATE_SOURCE_DIR, schema.path);
    ck_assert_int_eq(system(command), 0);
    test_store_prepare(&test);
    struct store_options options = {.conf = test.conf,
                                    .fernet = test.fernet,
                                    .epoch = test.epoch,
                                    .migrations_dir = schema.path};
    struct arena *arena = arena_new(4096);
    struct migration_status *items = NULL;
    size_t count = 0;
    ck_assert_int_eq(store_peek_migrations(test.conf, schema.path, arena, &items, &count,
                                           test.error, sizeof(test.error)),
                     0);
    ck_assert_uint_ge(count, 3);
    ck_assert(!items[0].is_applied);
    ck_assert_int_eq(store_open(&options, &test.store, test.error, 256), 0);
    ck_assert_int_eq(store_migration_status(test.store, arena, &items, &count), 0);
    char backup[32] = ""; // named after the last that was applied
    for (size_t i = 0; i < count; i++) {
        ck_assert(items[i].is_applied && items[i].applied_ms > 0);
        if (slice_is(items[i].set, "main"))
            snprintf(backup, sizeof(backup), "main.db.bak-%.4s", items[i].name.ptr);
    }
    test_store_close(&test);
    ck_assert_int_ne(access(test_store_file(&test, backup), F_OK), 0);

    // One more: applied, after a backup of what was there.
    char path[256];
    snprintf(path, sizeof(path), "%s/main/0900_more.sql", schema.path);
    test_write_file(path, "CREATE TABLE more (a INTEGER) STRICT;\nINSERT INTO more VALUES (7);\n");
    ck_assert_int_eq(store_open(&options, &test.store, test.error, 256), 0);
    test_store_close(&test);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT a FROM more"), 7);
    ck_assert_int_eq(access(test_store_file(&test, backup), F_OK), 0);
    ck_assert_int_eq(
        test_query(&test, backup, "SELECT count(*) FROM sqlite_schema WHERE name = 'more'"), 0);

    // A broken one leaves nothing behind and names itself.
    char broken[256];
    snprintf(broken, sizeof(broken), "%s/main/0901_broken.sql", schema.path);
    test_write_file(broken, "CREATE TABLE half (a INTEGER);\nCREATE TABEL x;\n");
    ck_assert_int_ne(store_open(&options, &test.store, test.error, 256), 0);
    ck_assert_msg(strstr(test.error, "main/0901_broken.sql"), "%s", test.error);
    ck_assert_int_eq(
        test_query(&test, "main.db", "SELECT count(*) FROM sqlite_schema WHERE name = 'half'"), 0);
    unlink(broken);
    test_write_file(path, "CREATE TABLE more (a INTEGER, b INTEGER) STRICT;\n");
    ck_assert_int_eq(store_open(&options, &test.store, test.error, 256), GW_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(test.error, "was changed"));
    unlink(path);
    ck_assert_int_eq(store_open(&options, &test.store, test.error, 256), GW_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(test.error, "newer version"));
    test.store = NULL;
    arena_free(arena);
    test_dir_clear(schema.path);
    test_store_end(&test);
}
END_TEST

START_TEST(a_plugin_migrates_only_its_tables)
{
    struct test_dir plugin;
    test_dir_make(&plugin);
    test_store_prepare(&test);
    test_store_open(&test);
    test_write_file(test_dir_file(&plugin, "0001_items.sql"),
                    "CREATE TABLE p_shop_items (id INTEGER PRIMARY KEY, name TEXT) STRICT;\n"
                    "CREATE INDEX p_shop_items_name ON p_shop_items (name);\n"
                    "CREATE TABLE p_shop_orders (id INTEGER PRIMARY KEY AUTOINCREMENT, "
                    "item_id INTEGER NOT NULL REFERENCES p_shop_items (id) ON DELETE CASCADE, "
                    "user_id INTEGER REFERENCES users (id), UNIQUE (item_id, user_id)) STRICT;\n"
                    "INSERT INTO p_shop_items VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET "
                    "name = excluded.name;\n"
                    "INSERT INTO p_shop_orders (item_id) VALUES (1);\n"
                    "DELETE FROM p_shop_items WHERE id = 1;\n");
    int err = store_migrate_plugin(test.store, SLICE_LIT("shop"), plugin.path, test.error, 256);
    ck_assert_msg(err == 0, "%s", test.error);
    ck_assert_int_eq(
        store_migrate_plugin(test.store, SLICE_LIT("shop"), plugin.path, test.error, 256), 0);
    ck_assert_int_eq(test_query(&test, "main.db",
                                "SELECT count(*) FROM schema_migrations "
                                "WHERE set_name = 'plugin:shop'"),
                     1);
    test_write_file(test_dir_file(&plugin, "0002_bad.sql"),
                    "CREATE TABLE p_shop_more (a INTEGER);\nUPDATE users SET is_admin = 1;\n");
    ck_assert_int_eq(
        store_migrate_plugin(test.store, SLICE_LIT("shop"), plugin.path, test.error, 256),
        GW_EDENIED);
    ck_assert_ptr_nonnull(strstr(test.error, "plugin:shop/0002_bad.sql"));
    ck_assert_int_eq(test_query(&test, "main.db",
                                "SELECT count(*) FROM sqlite_schema WHERE name = 'p_shop_more'"),
                     0);
    ck_assert_int_eq(
        store_migrate_plugin(test.store, SLICE_LIT("Sh'op"), plugin.path, test.error, 256),
        GW_EINVAL);
    test_dir_clear(plugin.path);
    test_store_end(&test);
}
END_TEST

static sem_t gate;
static int order[64], order_count;

struct ordered_job {
    struct store_job job;
    int number;
};

static int note_order(struct db *db, struct store_job *job)
{
    (void)db;
    struct ordered_job *ordered = (struct ordered_job *)job;
    if (ordered->number == 0)
        sem_wait(&gate);
    order[order_count++] = ordered->number;
    return 0;
}

static sem_t finished;

static void post_finished(struct store_job *job)
{
    (void)job;
    sem_post(&finished);
}

START_TEST(lanes_keep_order_and_do_not_wait_for_each_other)
{
    static struct ordered_job jobs[40];
    test_store_prepare(&test);
    test_store_open(&test);
    sem_init(&gate, 0, 0);
    sem_init(&finished, 0, 0);
    order_count = 0;
    for (int i = 0; i < 40; i++) {
        jobs[i] = (struct ordered_job){
            .job = {.run = note_order, .done = post_finished, .lane = STORE_READ_ADMIN},
            .number = i};
        ck_assert_int_eq(store_submit(test.store, &jobs[i].job), 0);
    }
    // The admin lane stands; hooks and writes go on.
    ck_assert_int_eq(store_run(test.store, STORE_WRITE, drop_key), 0);
    ck_assert_int_eq(store_run(test.store, STORE_READ_HOOK, insert_key), GW_EDENIED);
    ck_assert_int_eq(order_count, 0);
    sem_post(&gate);
    for (int i = 0; i < 40; i++)
        sem_wait(&finished);
    for (int i = 0; i < 40; i++)
        ck_assert_int_eq(order[i], i);
    test_store_end(&test);
}
END_TEST

START_TEST(an_outside_writer_only_delays)
{
    char error[256];
    struct db *other = NULL;
    static struct ordered_job job;
    test_store_prepare(&test);
    test_store_open(&test);
    sem_init(&finished, 0, 0);
    ck_assert_int_eq(db_open(test_store_file(&test, "main.db"), 0, &other, error, sizeof(error)),
                     0);
    ck_assert_int_eq(db_run(other, SLICE_LIT("BEGIN EXCLUSIVE"), NULL, 0, NULL, 0, NULL), 0);
    job = (struct ordered_job){.job = {.run = drop_key, .done = post_finished, .lane = STORE_WRITE},
                               .number = 1};
    ck_assert_int_eq(store_submit(test.store, &job.job), 0);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 200000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    ck_assert_int_ne(sem_timedwait(&finished, &until), 0);
    db_rollback(other);
    db_close(other);
    sem_wait(&finished);
    ck_assert_int_eq(job.job.err, 0);
    test_store_end(&test);
}
END_TEST

TEST_MAIN("store", a_write_is_published_before_its_done, upstreams_are_imported_once_and_encrypted,
          a_bad_import_names_entry_and_field, files_have_modes_and_one_owner,
          damaged_files_are_named_and_never_replaced, migrations_are_recorded_checked_and_backed_up,
          a_plugin_migrates_only_its_tables, lanes_keep_order_and_do_not_wait_for_each_other,
          an_outside_writer_only_delays)

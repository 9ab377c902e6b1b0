// The admin verbs: keys, upstreams, logs, prices, rollups; what they answer and what they change.
#include "base/buf.h"
#include "base/money.h"
#include "codec/secret.h"
#include "state/admin.h"
#include "store_test.h"
#include <semaphore.h>
#include <stdarg.h>
#include <yyjson.h>

static struct test_store test;
static struct epoch_reader *reader;
static yyjson_doc *answer;
static char message[512], code[64];

static void setup(void)
{
    test_store_prepare(&test);
    test_store_open(&test);
    reader = epoch_register(test.epoch);
}

static void teardown(void)
{
    yyjson_doc_free(answer);
    answer = NULL;
    epoch_unregister(reader);
    test_store_end(&test);
}

static void post(struct store_job *job)
{
    sem_post(((struct admin_job *)job)->user);
}

// Runs a verb; the answer's root, or NULL with the error in *err.
static yyjson_val *call(enum admin_verb verb, int *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static yyjson_val *call(enum admin_verb verb, int *err, const char *format, ...)
{
    char text[8192];
    sem_t done;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    for (char *at = text; *at; at++)
        if (*at == '\'')
            *at = '"';
    sem_init(&done, 0, 0);
    struct admin_job *job = admin_job_new(test.store, verb, slice_str(text));
    ck_assert_ptr_nonnull(job);
    job->user = &done;
    job->job.done = post;
    ck_assert_int_eq(store_submit(test.store, &job->job), 0);
    sem_wait(&done);
    *err = job->job.err;
    snprintf(message, sizeof(message), "%.*s", SLICE_FMT(job->error_message));
    snprintf(code, sizeof(code), "%.*s", SLICE_FMT(job->error_code));
    yyjson_doc_free(answer);
    answer = NULL;
    if (*err == 0) {
        answer = yyjson_read(job->result_json.ptr, job->result_json.len, 0);
        ck_assert_msg(answer != NULL, "%.*s", SLICE_FMT(job->result_json));
    } else {
        ck_assert_uint_eq(job->result_json.len, 0);
    }
    admin_job_free(job);
    sem_destroy(&done);
    return yyjson_doc_get_root(answer);
}

static yyjson_val *good(enum admin_verb verb, const char *text)
{
    int err = 0;
    yyjson_val *root = call(verb, &err, "%s", text);
    ck_assert_msg(err == 0, "%s: %d %s", text, err, message);
    return root;
}

static const char *str(yyjson_val *object, const char *name)
{
    static char copies[8][1024];
    static int turn;
    const char *text = yyjson_get_str(yyjson_obj_get(object, name));
    char *copy = copies[turn++ % 8];
    snprintf(copy, sizeof(copies[0]), "%s", text ? text : "(null)");
    return copy;
}

static int64_t num(yyjson_val *object, const char *name)
{
    yyjson_val *val = yyjson_obj_get(object, name);
    ck_assert_msg(yyjson_is_int(val), "%s", name);
    return yyjson_get_sint(val);
}

static bool flag(yyjson_val *object, const char *name)
{
    yyjson_val *val = yyjson_obj_get(object, name);
    ck_assert_msg(yyjson_is_bool(val), "%s", name);
    return yyjson_get_bool(val);
}

static bool is_null(yyjson_val *object, const char *name)
{
    return yyjson_is_null(yyjson_obj_get(object, name));
}

static yyjson_val *item(yyjson_val *root, size_t index)
{
    return yyjson_arr_get(yyjson_obj_get(root, "items"), index);
}

static const char *make_upstream(const char *name)
{
    char text[256];
    snprintf(text, sizeof(text),
             "{'name':'%s','provider':'openai','base_url':'https://x.example/v1',"
             "'api_key':'sk-secret-7890'}",
             name);
    return str(good(ADMIN_UPSTREAM_CREATE, text), "uid");
}

START_TEST(keys_live_from_creation_to_revocation)
{
    setup();
    int err;
    const char *up = make_upstream("main");
    yyjson_val *row =
        call(ADMIN_KEY_CREATE, &err,
             "{'name':'app','description':'d','upstream_ids':['%s'],'expires_at_ms':4102444800000,"
             "'allowed_models':['gpt-*','claude-x'],'rpm':60,'rpd':1000}",
             up);
    ck_assert_msg(err == 0, "%s", message);
    const char *value = str(row, "key_value"), *uid = str(row, "uid");
    ck_assert_uint_eq(strlen(value), 51);
    ck_assert_uint_eq(strlen(uid), 36);
    ck_assert_int_eq(strncmp(value, str(row, "key_prefix"), 12), 0);
    ck_assert_uint_eq(strlen(str(row, "key_prefix")), 12);
    ck_assert_str_eq(yyjson_get_str(yyjson_arr_get(yyjson_obj_get(row, "upstream_ids"), 0)), up);
    ck_assert_str_eq(yyjson_get_str(yyjson_arr_get(yyjson_obj_get(row, "upstreams"), 0)), "main");
    ck_assert(flag(row, "is_active"));
    ck_assert_int_eq(num(row, "expires_ms"), INT64_C(4102444800000));
    ck_assert_int_eq(num(row, "rpm"), 60);
    // Known everywhere before the answer.
    struct sha256 hash;
    ck_assert_int_eq(secret_sha256(slice_str(value), &hash), 0);
    epoch_enter(reader);
    const struct key_entry *key = directory_key(store_directory(test.store), &hash);
    ck_assert(key && key->is_active && key->upstream_count == 1 && key->rpd == 1000);
    ck_assert_uint_eq(key->allowed_model_count, 2);
    epoch_leave(reader);
    row = good(ADMIN_KEY_LIST, "{}");
    ck_assert_int_eq(num(row, "total"), 1);
    ck_assert(yyjson_obj_get(item(row, 0), "key_value") == NULL);
    ck_assert_str_eq(str(item(row, 0), "uid"), uid);

    call(ADMIN_KEY_UPDATE, &err, "{'uid':'%s','name':'new','rpm':null,'upstream_ids':null}", uid);
    ck_assert_int_eq(err, 0);
    epoch_enter(reader);
    key = directory_key(store_directory(test.store), &hash);
    ck_assert(key && !key->has_upstream_list && key->rpm == 0 && key->rpd == 1000);
    ck_assert(slice_is(key_entry_name(key), "new"));
    epoch_leave(reader);

    row = call(ADMIN_KEY_REVOKE, &err, "{'uid':'%s'}", uid);
    ck_assert_int_eq(err, 0);
    ck_assert(!flag(row, "is_active") && !is_null(row, "revoked_ms"));
    epoch_enter(reader);
    key = directory_key(store_directory(test.store), &hash);
    ck_assert(!key || !key->is_active);
    epoch_leave(reader);
    call(ADMIN_KEY_UPDATE, &err, "{'uid':'%s','is_active':true}", uid);
    ck_assert_int_eq(err, GW_EINVAL);
    call(ADMIN_KEY_REVOKE, &err, "{'uid':'%s'}", uid);
    ck_assert_int_eq(err, 0);
    call(ADMIN_KEY_GET, &err, "{'uid':'00000000-0000-4000-8000-000000000000'}");
    ck_assert_int_eq(err, GW_ENOTFOUND);
    ck_assert_str_eq(code, "not_found");
    // No plain key and no hash in text anywhere.
    ck_assert_int_eq(
        test_query(&test, "main.db", "SELECT count(*) FROM api_keys WHERE length(key_hash) = 32"),
        1);
    teardown();
}
END_TEST

START_TEST(a_key_with_a_bad_upstream_is_not_written)
{
    setup();
    int err;
    const char *up = make_upstream("main"), *gone = make_upstream("gone");
    call(ADMIN_UPSTREAM_DELETE, &err, "{'uid':'%s'}", gone);
    ck_assert_int_eq(err, 0);
    char expected[256];
    call(ADMIN_KEY_CREATE, &err, "{'name':'k','upstream_ids':['%s','nope','%s']}", up, gone);
    ck_assert_int_eq(err, GW_EINVAL);
    ck_assert_str_eq(code, "invalid_request");
    snprintf(expected, sizeof(expected), "Invalid or inactive upstream IDs: ['nope', '%s']", gone);
    ck_assert_str_eq(message, expected);
    static const char *const bad[] = {
        "{}",
        "{'name':''}",
        "{'name':5}",
        "{'name':'k','colour':1}",
        "{'name':'k','upstream_ids':[]}",
        "{'name':'k','upstream_ids':'x'}",
        "{'name':'k','upstreams':['none']}",
        "{'name':'k','scheme':'rsa'}",
        "{'name':'k','rpm':-1}",
        "{'name':'k','rpm':1.5}",
        "{'name':'k','user_id':99}",
        "{'name':'k','allowed_models':[1]}",
        "[]",
        "{",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        call(ADMIN_KEY_CREATE, &err, "%s", bad[i]);
        ck_assert_msg(err == GW_EINVAL, "%s: %d", bad[i], err);
        ck_assert_msg(message[0] != '\0', "%s", bad[i]);
    }
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM api_keys"), 0);
    ck_assert_uint_eq(
        strlen(str(good(ADMIN_KEY_CREATE, "{'name':'k','scheme':'sk'}"), "key_value")), 51);
    ck_assert_uint_eq(
        strlen(str(good(ADMIN_KEY_CREATE, "{'name':'k','scheme':'ahg','upstreams':['main']}"),
                   "key_value")),
        52);
    teardown();
}
END_TEST

START_TEST(key_lists_page_and_search)
{
    setup();
    int err;
    for (int i = 0; i < 25; i++) {
        call(ADMIN_KEY_CREATE, &err, "{'name':'Key %02d'}", i);
        ck_assert_int_eq(err, 0);
    }
    yyjson_val *root = good(ADMIN_KEY_LIST, "{}");
    ck_assert_int_eq(num(root, "total"), 25);
    ck_assert_uint_eq(yyjson_arr_size(yyjson_obj_get(root, "items")), 20);
    ck_assert_str_eq(str(item(root, 0), "name"), "Key 24");
    root = good(ADMIN_KEY_LIST, "{'page':2}");
    ck_assert_uint_eq(yyjson_arr_size(yyjson_obj_get(root, "items")), 5);
    ck_assert_str_eq(str(item(root, 4), "name"), "Key 00");
    root = good(ADMIN_KEY_LIST, "{'search':'key 1','page_size':3}");
    ck_assert_int_eq(num(root, "total"), 10);
    root = good(ADMIN_KEY_LIST, "{'is_active':false}");
    ck_assert_int_eq(num(root, "total"), 0);
    call(ADMIN_KEY_LIST, &err, "{'page':0}");
    ck_assert_int_eq(err, GW_EINVAL);
    call(ADMIN_KEY_LIST, &err, "{'page_size':1001}");
    ck_assert_int_eq(err, GW_EINVAL);
    teardown();
}
END_TEST

START_TEST(upstreams_are_masked_unique_and_have_one_default)
{
    setup();
    int err;
    yyjson_val *row = good(ADMIN_UPSTREAM_CREATE,
                           "{'name':'a','provider':'openai','base_url':'https://a.example',"
                           "'api_key':'sk-1234567890','is_default':true,'config':'{\\\"x\\\":1}'}");
    const char *a = str(row, "uid");
    ck_assert_str_eq(str(row, "api_key_masked"), "sk-***7890");
    ck_assert(flag(row, "is_default") && flag(row, "is_active"));
    ck_assert(is_null(row, "timeout") && is_null(row, "models"));
    ck_assert_int_eq(num(yyjson_obj_get(row, "config"), "x"), 1);
    call(ADMIN_UPSTREAM_CREATE, &err, "{'name':'a','provider':'x','base_url':'https://b'}");
    ck_assert_int_eq(err, GW_EEXISTS);
    ck_assert_str_eq(code, "invalid_request");
    ck_assert_ptr_nonnull(strstr(message, "'a' already exists"));
    row =
        good(ADMIN_UPSTREAM_CREATE,
             "{'name':'b','provider':'anthropic','base_url':'https://b.example','is_default':true,"
             "'models':['claude-*']}");
    const char *b = str(row, "uid");
    ck_assert(is_null(row, "api_key_masked"));
    ck_assert_str_eq(yyjson_get_str(yyjson_arr_get(yyjson_obj_get(row, "formats"), 0)), "claude");
    row = call(ADMIN_UPSTREAM_GET, &err, "{'uid':'%s'}", a);
    ck_assert(!flag(row, "is_default"));
    epoch_enter(reader);
    const struct catalogue *catalogue = catalogue_get(store_catalogue(test.store));
    ck_assert_uint_eq(catalogue->upstream_count, 2);
    ck_assert(!catalogue_upstream_named(catalogue, SLICE_LIT("a"))->is_default);
    ck_assert(catalogue_upstream_named(catalogue, SLICE_LIT("b"))->is_default);
    epoch_leave(reader);
    // An update changes only what is named; an empty key leaves the key.
    row = call(ADMIN_UPSTREAM_UPDATE, &err,
               "{'uid':'%s','name':'a2','api_key':'','timeout':9,'is_default':true}", a);
    ck_assert_msg(err == 0, "%s", message);
    ck_assert_str_eq(str(row, "name"), "a2");
    ck_assert_str_eq(str(row, "api_key_masked"), "sk-***7890");
    ck_assert_int_eq(num(row, "timeout"), 9);
    ck_assert_int_eq(num(yyjson_obj_get(row, "config"), "x"), 1);
    epoch_enter(reader);
    catalogue = catalogue_get(store_catalogue(test.store));
    const struct upstream *upstream = catalogue_upstream_named(catalogue, SLICE_LIT("a2"));
    ck_assert(slice_is(secret_reveal(upstream->api_key), "sk-1234567890"));
    ck_assert_uint_eq(upstream->first_byte_ms, 9000);
    epoch_leave(reader);
    call(ADMIN_UPSTREAM_UPDATE, &err, "{'uid':'%s','name':'b'}", a);
    ck_assert_int_eq(err, GW_EEXISTS);
    row = call(ADMIN_UPSTREAM_UPDATE, &err, "{'uid':'%s','api_key':'new-key-0001','timeout':null}",
               a);
    ck_assert_str_eq(str(row, "api_key_masked"), "ne***0001");
    ck_assert(is_null(row, "timeout"));
    row = call(ADMIN_UPSTREAM_DELETE, &err, "{'uid':'%s'}", b);
    ck_assert(!flag(row, "is_active") && !flag(row, "is_default"));
    epoch_enter(reader);
    catalogue = catalogue_get(store_catalogue(test.store));
    ck_assert_ptr_null(catalogue_upstream_named(catalogue, SLICE_LIT("b")));
    epoch_leave(reader);
    row = good(ADMIN_UPSTREAM_LIST, "{}");
    ck_assert_int_eq(num(row, "total"), 2);
    call(ADMIN_UPSTREAM_UPDATE, &err, "{'uid':'%s','is_active':true}", b);
    ck_assert_int_eq(err, 0);
    call(ADMIN_UPSTREAM_UPDATE, &err, "{'uid':'none','is_active':true}");
    ck_assert_int_eq(err, GW_ENOTFOUND);
    call(ADMIN_UPSTREAM_CREATE, &err, "{'name':'c','provider':'x','base_url':'https://'}");
    ck_assert_int_eq(err, GW_EINVAL);
    ck_assert_ptr_nonnull(strstr(message, "base_url"));
    test_exec(&test, "main.db", "UPDATE upstreams SET api_key_enc = 'junk' WHERE name = 'a2'");
    row = call(ADMIN_UPSTREAM_GET, &err, "{'uid':'%s'}", a);
    ck_assert_str_eq(str(row, "api_key_masked"), "***error***");
    teardown();
}
END_TEST

static struct gw_id push_log(int64_t created_ms, int64_t key_id, int64_t upstream_id, int status,
                             const char *model)
{
    static const struct log_attempt attempt = {1, 200, 12, {"ok", 2}};
    struct log_record record = {
        .created_ms = created_ms,
        .key_id = key_id,
        .upstream_id = upstream_id,
        .status = status,
        .model = slice_str(model),
        .method = SLICE_LIT("POST"),
        .path = SLICE_LIT("/v1/messages"),
        .is_success = status < 400,
        .discounts_json = SLICE_LIT("[{\"ppm\":900000}]"),
        .usage = {.input = 5, .cache_read = 3, .output = 2, .reasoning = 1},
        .cost_nano = 1000,
        .attempts = &attempt,
        .attempt_count = 1,
    };
    ck_assert_int_eq(id_new(&record.id), 0);
    // The id carries the exchange's time.
    for (int i = 0; i < 6; i++)
        record.id.bytes[i] = (uint8_t)(created_ms >> (40 - 8 * i));
    struct buf bytes = BUF_INIT(0);
    ck_assert_int_eq(log_record_encode(&record, &bytes), 0);
    ck_assert_int_eq(journal_push(store_journal(test.store), JOURNAL_LOG, buf_slice(&bytes), NULL),
                     0);
    buf_free(&bytes);
    return record.id;
}

START_TEST(logs_are_filtered_paged_and_pruned)
{
    setup();
    int err;
    char id_text[37];
    const char *up = make_upstream("main");
    yyjson_val *row = good(ADMIN_KEY_CREATE, "{'name':'logged'}");
    const char *key = str(row, "uid");
    int64_t key_id = num(row, "id"), base = INT64_C(1700000000000);
    struct gw_id last = {{0}};
    for (int i = 0; i < 30; i++)
        last = push_log(base + i * 1000, i % 2 ? key_id : 0, 1, i % 5 ? 200 : 503,
                        i % 3 ? "gpt-x" : "claude-y");
    ck_assert_int_eq(journal_flush(store_journal(test.store), 20000), 0);
    row = good(ADMIN_LOG_LIST, "{'page_size':10}");
    ck_assert_int_eq(num(row, "total"), 30);
    ck_assert(!flag(row, "is_total_capped"));
    row = item(row, 0);
    ck_assert_int_eq(num(row, "created_ms"), base + 29000);
    ck_assert_str_eq(str(row, "key_uid"), key);
    ck_assert_str_eq(str(row, "key_name"), "logged");
    ck_assert_str_eq(str(row, "upstream_uid"), up);
    ck_assert_str_eq(str(row, "upstream"), "main");
    ck_assert_int_eq(num(row, "prompt_tokens"), 8);
    ck_assert_int_eq(num(row, "completion_tokens"), 3);
    ck_assert_int_eq(num(row, "total_tokens"), 11);
    ck_assert_int_eq(num(row, "cost_nano"), 1000);
    ck_assert(is_null(row, "ttft_ms") && is_null(row, "price_version"));
    ck_assert_int_eq(num(yyjson_arr_get(yyjson_obj_get(row, "attempts"), 0), "duration_ms"), 12);
    ck_assert_int_eq(num(yyjson_arr_get(yyjson_obj_get(row, "discounts"), 0), "ppm"), 900000);
    id_format(&last, id_text);
    ck_assert_str_eq(str(row, "id"), id_text);
    row = call(ADMIN_LOG_GET, &err, "{'id':'%s'}", id_text);
    ck_assert_int_eq(err, 0);
    ck_assert_int_eq(num(row, "created_ms"), base + 29000);
    call(ADMIN_LOG_GET, &err, "{'id':'nonsense'}");
    ck_assert_int_eq(err, GW_ENOTFOUND);
    ck_assert_int_eq(num(good(ADMIN_LOG_LIST, "{'page_size':10,'page':4}"), "total"), 30);
    ck_assert_int_eq(num(call(ADMIN_LOG_LIST, &err, "{'key_uid':'%s'}", key), "total"), 15);
    ck_assert_int_eq(num(call(ADMIN_LOG_LIST, &err, "{'key_uid':'%s','status':503}", key), "total"),
                     3);
    ck_assert_int_eq(num(call(ADMIN_LOG_LIST, &err, "{'upstream_uid':'%s'}", up), "total"), 30);
    ck_assert_int_eq(num(good(ADMIN_LOG_LIST, "{'key_uid':'unknown'}"), "total"), 0);
    ck_assert_int_eq(num(good(ADMIN_LOG_LIST, "{'model':'claude-y'}"), "total"), 10);
    ck_assert_int_eq(
        num(good(ADMIN_LOG_LIST, "{'start_ms':1700000005000,'end_ms':1700000009000}"), "total"), 5);
    row = good(ADMIN_ROLLUP_LIST, "{'from_ms':0,'to_ms':2000000000000,'by':'model'}");
    ck_assert_uint_eq(yyjson_arr_size(yyjson_obj_get(row, "items")), 2);
    ck_assert_str_eq(str(item(row, 0), "model"), "gpt-x");
    ck_assert_int_eq(num(item(row, 0), "requests"), 20);
    ck_assert_int_eq(num(item(row, 0), "total_tokens"), 220);
    row = good(ADMIN_ROLLUP_LIST, "{'from_ms':0,'to_ms':2000000000000,'by':'key'}");
    ck_assert_uint_eq(yyjson_arr_size(yyjson_obj_get(row, "items")), 2);
    row = good(ADMIN_ROLLUP_LIST, "{'from_ms':0,'to_ms':2000000000000,'by':'upstream'}");
    ck_assert_str_eq(str(item(row, 0), "upstream"), "main");
    row = good(ADMIN_ROLLUP_LIST, "{'from_ms':0,'to_ms':2000000000000}");
    ck_assert_int_eq(num(item(row, 0), "requests"), 30);
    for (int i = 0; i < 4500; i++) // more than two steps
        push_log(base - 100000 + i, 0, 0, 200, "old");
    ck_assert_int_eq(journal_flush(store_journal(test.store), 20000), 0);
    row = call(ADMIN_LOG_PRUNE, &err, "{'before_ms':%lld}", (long long)base + 10000);
    ck_assert_int_eq(err, 0);
    ck_assert_int_eq(num(row, "deleted"), 4510);
    ck_assert_int_eq(num(good(ADMIN_LOG_LIST, "{}"), "total"), 20);
    teardown();
}
END_TEST

START_TEST(prices_are_versions)
{
    setup();
    int err;
    yyjson_val *row =
        good(ADMIN_PRICE_PUT, "{'model':'gpt-*','input':'2.5','output':10,'cache_read':0.25}");
    int64_t first = num(row, "version");
    ck_assert_int_eq(num(row, "input_nano"), 2500000000);
    ck_assert_int_eq(num(row, "output_nano"), 10 * MONEY_USD);
    ck_assert_int_eq(num(row, "cache_read_nano"), 250000000);
    ck_assert(is_null(row, "per_call_nano"));
    row =
        good(ADMIN_PRICE_PUT, "{'model':'gpt-*','input':2.5,'output':'10.0','cache_read':'0.25'}");
    ck_assert_int_eq(num(row, "version"), first);
    row = good(ADMIN_PRICE_PUT, "{'model':'gpt-*','input':3,'output':10}");
    ck_assert_int_gt(num(row, "version"), first);
    good(ADMIN_PRICE_PUT, "{'model':'gpt-x','per_call':'0.000000001','max_output':4096}");
    epoch_enter(reader);
    const struct catalogue *catalogue = catalogue_get(store_catalogue(test.store));
    ck_assert_uint_eq(catalogue->price_count, 2);
    const struct price *price = catalogue_price(catalogue, SLICE_LIT("gpt-x"));
    ck_assert(price->per_call == 1 && price->input == -1 && price->max_output == 4096);
    price = catalogue_price(catalogue, SLICE_LIT("gpt-5"));
    ck_assert(price->input == 3 * MONEY_USD && price->cache_read == -1 && price->max_output == -1);
    epoch_leave(reader);
    ck_assert_uint_eq(yyjson_arr_size(yyjson_obj_get(good(ADMIN_PRICE_LIST, "{}"), "items")), 2);
    good(ADMIN_PRICE_DELETE, "{'model':'gpt-*'}");
    call(ADMIN_PRICE_DELETE, &err, "{'model':'gpt-*'}");
    ck_assert_int_eq(err, GW_ENOTFOUND);
    static const char *const bad[] = {
        "{'model':'x'}",
        "{'model':'x','input':1}",
        "{'model':'x','input':-1,'output':1}",
        "{'model':'x','input':'0.0000000001','output':1}",
        "{'model':'x','input':true,'output':1}",
        "{'input':1,'output':1}",
        "{'model':'x','input':1,'output':1,'max_output':0}",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        call(ADMIN_PRICE_PUT, &err, "%s", bad[i]);
        ck_assert_msg(err == GW_EINVAL, "%s: %d", bad[i], err);
    }
    epoch_enter(reader);
    ck_assert_uint_eq(catalogue_get(store_catalogue(test.store))->price_count, 1);
    epoch_leave(reader);
    teardown();
}
END_TEST

TEST_MAIN("admin", keys_live_from_creation_to_revocation, a_key_with_a_bad_upstream_is_not_written,
          key_lists_page_and_search, upstreams_are_masked_unique_and_have_one_default,
          logs_are_filtered_paged_and_pruned, prices_are_versions)

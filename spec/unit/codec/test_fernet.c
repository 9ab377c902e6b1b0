// Fernet: the official vectors (read in place, counted when absent), own cases of the same
// structure, tampering and the key ring.
#include "base/clock.h"
#include "codec/fernet.h"
#include "codec/secret.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <yyjson.h>

#define KEY "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="
#define OTHER_KEY "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
#define TOKEN                                                                                      \
    "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU" \
    "4IwqDA=="

static struct fernet *ring(const char *keys)
{
    struct fernet *fernet = NULL;
    const char *why = NULL;
    ck_assert_int_eq(fernet_new(slice_str(keys), &fernet, &why), 0);
    ck_assert_ptr_null(why);
    return fernet;
}

static yyjson_doc *vectors(const char *name)
{
    const char *shared = getenv("MOONGATE_SHARED");
    char path[512];
    snprintf(path, sizeof(path), "%s/fernet/%s", shared ? shared : "../shared", name);
    yyjson_doc *doc = yyjson_read_file(path, 0, NULL, NULL);
    if (!doc)
        printf("skipped: 1 file of official vectors, %s, is absent\n", path);
    return doc;
}

static struct slice text_of(yyjson_val *object, const char *name)
{
    yyjson_val *val = yyjson_obj_get(object, name);
    return slice_of(yyjson_get_str(val), yyjson_get_len(val));
}

static int64_t time_of(yyjson_val *object)
{
    struct slice text = text_of(object, "now");
    int64_t ms = 0;
    ck_assert_int_eq(clock_parse_iso(text.ptr, text.len, &ms), 0);
    return ms / 1000;
}

START_TEST(official_vectors_hold)
{
    size_t i, max, seen = 0;
    yyjson_val *item;
    yyjson_doc *doc = vectors("generate.json");
    yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, item)
    {
        struct fernet *fernet = NULL;
        ck_assert_int_eq(fernet_new(text_of(item, "secret"), &fernet, NULL), 0);
        uint8_t iv[16];
        for (size_t k = 0; k < 16; k++)
            iv[k] = (uint8_t)yyjson_get_uint(yyjson_arr_get(yyjson_obj_get(item, "iv"), k));
        struct buf out = BUF_INIT(0);
        ck_assert_int_eq(fernet_encrypt_at(fernet, text_of(item, "src"), time_of(item), iv, &out),
                         0);
        ck_assert(slice_eq(buf_slice(&out), text_of(item, "token")));
        buf_free(&out);
        fernet_free(fernet);
        seen++;
    }
    yyjson_doc_free(doc);
    static const char *const files[] = {"verify.json", "invalid.json"};
    for (int file = 0; file < 2; file++) {
        doc = vectors(files[file]);
        yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, item)
        {
            struct fernet *fernet = NULL;
            ck_assert_int_eq(fernet_new(text_of(item, "secret"), &fernet, NULL), 0);
            struct buf out = BUF_INIT(0);
            int64_t ttl = (int64_t)yyjson_get_uint(yyjson_obj_get(item, "ttl_sec"));
            int err = fernet_decrypt(fernet, text_of(item, "token"), ttl, time_of(item), &out);
            if (file == 0) {
                ck_assert_int_eq(err, 0);
                ck_assert(slice_eq(buf_slice(&out), text_of(item, "src")));
            } else {
                ck_assert_msg(err == GW_EINVAL || err == GW_EDENIED, "%s: %d",
                              text_of(item, "desc").ptr, err);
                ck_assert_uint_eq(out.len, 0);
            }
            buf_free(&out);
            fernet_free(fernet);
            seen++;
        }
        yyjson_doc_free(doc);
    }
    printf("official vectors: %zu\n", seen);
}
END_TEST

START_TEST(round_trips_all_lengths)
{
    struct fernet *fernet = ring(KEY);
    char plain[100];
    memset(plain, 'x', sizeof(plain));
    for (size_t len = 0; len <= sizeof(plain); len++) {
        struct buf token = BUF_INIT(0), back = BUF_INIT(0);
        ck_assert_int_eq(fernet_encrypt(fernet, slice_of(plain, len), &token), 0);
        ck_assert_int_eq(fernet_decrypt(fernet, buf_slice(&token), -1, 0, &back), 0);
        ck_assert(slice_eq(buf_slice(&back), slice_of(plain, len)));
        buf_free(&token);
        buf_wipe(&back);
    }
    fernet_free(fernet);
}
END_TEST

START_TEST(every_changed_character_is_refused)
{
    struct fernet *fernet = ring(KEY);
    char token[] = TOKEN;
    for (size_t i = 0; i < sizeof(token) - 1; i++) {
        char old = token[i];
        token[i] = old == 'A' ? 'B' : 'A';
        struct buf out = BUF_INIT(0);
        int err = fernet_decrypt(fernet, slice_str(token), -1, 0, &out);
        ck_assert_msg(err == GW_EINVAL || err == GW_EDENIED, "at %zu: %d", i, err);
        ck_assert_uint_eq(out.len, 0);
        buf_free(&out);
        token[i] = old;
    }
    for (size_t len = 0; len < sizeof(token) - 1; len++) {
        struct buf out = BUF_INIT(0);
        ck_assert_int_ne(fernet_decrypt(fernet, slice_of(token, len), -1, 0, &out), 0);
        buf_free(&out);
    }
    fernet_free(fernet);
}
END_TEST

START_TEST(time_matters_only_with_a_ttl)
{
    struct fernet *fernet = ring(KEY);
    static const struct {
        int64_t ttl, now;
        int err;
    } cases[] = {
        {-1, 0, 0},
        {-1, INT64_C(4000000000), 0},
        {60, 499162800, 0},
        {60, 499162860, 0},
        {60, 499162861, GW_EDENIED},
        {60, 499162740, 0},
        {60, 499162739, GW_EDENIED},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf out = BUF_INIT(0);
        int err = fernet_decrypt(fernet, SLICE_LIT(TOKEN), cases[i].ttl, cases[i].now, &out);
        ck_assert_msg(err == cases[i].err, "case %zu: %d", i, err);
        if (err == 0)
            ck_assert(slice_is(buf_slice(&out), "hello"));
        buf_free(&out);
    }
    fernet_free(fernet);
}
END_TEST

START_TEST(ring_encrypts_with_the_first_and_opens_with_all)
{
    struct fernet *old = ring(KEY), *both = ring(OTHER_KEY " , " KEY), *other = ring(OTHER_KEY);
    struct buf out = BUF_INIT(0), token = BUF_INIT(0);
    ck_assert_int_eq(fernet_decrypt(both, SLICE_LIT(TOKEN), -1, 0, &out), 0);
    ck_assert(slice_is(buf_slice(&out), "hello"));
    ck_assert_int_eq(fernet_encrypt(both, SLICE_LIT("new"), &token), 0);
    buf_clear(&out);
    ck_assert_int_eq(fernet_decrypt(old, buf_slice(&token), -1, 0, &out), GW_EDENIED);
    ck_assert_int_eq(fernet_decrypt(other, buf_slice(&token), -1, 0, &out), 0);
    ck_assert(slice_is(buf_slice(&out), "new"));
    // A key that was derived from a text (SURFACES §1.1) is added for decryption only.
    struct sha256 hash;
    ck_assert_int_eq(secret_sha256(SLICE_LIT("any secret text"), &hash), 0);
    struct buf key = BUF_INIT(0);
    ck_assert_int_eq(secret_base64url_encode(slice_of((char *)hash.bytes, 32), true, &key), 0);
    struct fernet *derived = NULL;
    ck_assert_int_eq(fernet_new(buf_slice(&key), &derived, NULL), 0);
    buf_clear(&token);
    ck_assert_int_eq(fernet_encrypt(derived, SLICE_LIT("theirs"), &token), 0);
    buf_clear(&out);
    ck_assert_int_eq(fernet_add_key(other, SLICE_LIT("any secret text"), true), 0);
    ck_assert_int_eq(fernet_decrypt(other, buf_slice(&token), -1, 0, &out), 0);
    ck_assert(slice_is(buf_slice(&out), "theirs"));
    buf_free(&out);
    buf_free(&token);
    buf_free(&key);
    fernet_free(old);
    fernet_free(both);
    fernet_free(other);
    fernet_free(derived);
}
END_TEST

START_TEST(bad_keys_are_named)
{
    static const char *const bad[] = {
        "",
        "short",
        "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4",
        "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4A",
        "cw_0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4e4=",
        KEY ",",
        KEY "," KEY "x",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct fernet *fernet = NULL;
        const char *why = NULL;
        ck_assert_msg(fernet_new(slice_str(bad[i]), &fernet, &why) == GW_EINVAL, "%s", bad[i]);
        ck_assert_ptr_null(fernet);
        ck_assert_ptr_nonnull(why);
    }
    // Bits left over in the last character are ignored, as in other implementations.
    struct fernet *fernet = ring("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e5=");
    struct buf out = BUF_INIT(0);
    ck_assert_int_eq(fernet_decrypt(fernet, SLICE_LIT(TOKEN), -1, 0, &out), 0);
    buf_clear(&out);
    ck_assert_int_eq(fernet_generate(&out), 0);
    ck_assert_uint_eq(out.len, 44);
    struct fernet *made = NULL;
    ck_assert_int_eq(fernet_new(buf_slice(&out), &made, NULL), 0);
    for (int i = 1; i < 16; i++)
        ck_assert_int_eq(fernet_add_key(made, SLICE_LIT(KEY), false), 0);
    ck_assert_int_eq(fernet_add_key(made, SLICE_LIT(KEY), false), GW_EFULL);
    buf_free(&out);
    fernet_free(fernet);
    fernet_free(made);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fernet");
    TCase *tests = tcase_create("fernet");
    tcase_add_test(tests, official_vectors_hold);
    tcase_add_test(tests, round_trips_all_lengths);
    tcase_add_test(tests, every_changed_character_is_refused);
    tcase_add_test(tests, time_matters_only_with_a_ttl);
    tcase_add_test(tests, ring_encrypts_with_the_first_and_opens_with_all);
    tcase_add_test(tests, bad_keys_are_named);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}

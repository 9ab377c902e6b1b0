// Secrets: hashes against published vectors, key forms, masks, base64url.
#include "codec/secret.h"
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static void hex(const struct sha256 *hash, char out[65])
{
    for (int i = 0; i < 32; i++)
        snprintf(out + i * 2, 3, "%02x", hash->bytes[i]);
}

START_TEST(hashes_match_published_vectors)
{
    struct sha256 hash;
    char text[65];
    ck_assert_int_eq(secret_sha256(SLICE_NONE, &hash), 0);
    hex(&hash, text);
    ck_assert_str_eq(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    ck_assert_int_eq(secret_sha256(SLICE_LIT("abc"), &hash), 0);
    hex(&hash, text);
    ck_assert_str_eq(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    // RFC 4231, case 2; and the empty key and message.
    ck_assert_int_eq(
        secret_hmac_sha256(SLICE_LIT("Jefe"), SLICE_LIT("what do ya want for nothing?"), &hash), 0);
    hex(&hash, text);
    ck_assert_str_eq(text, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    ck_assert_int_eq(secret_hmac_sha256(SLICE_NONE, SLICE_NONE, &hash), 0);
    hex(&hash, text);
    ck_assert_str_eq(text, "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
    // RFC 5869, test case 3 (no salt, no info): the first 32 of its 42 bytes.
    char input[22];
    memset(input, 0x0b, sizeof(input));
    ck_assert_int_eq(secret_hkdf_sha256(slice_of(input, 22), "", &hash), 0);
    hex(&hash, text);
    ck_assert_str_eq(text, "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d");
    struct sha256 other;
    ck_assert_int_eq(secret_hkdf_sha256(slice_of(input, 22), "session", &other), 0);
    ck_assert(memcmp(&hash, &other, sizeof(hash)) != 0);
}
END_TEST

static void *hash_in_thread(void *arg)
{
    struct sha256 hash;
    for (int i = 0; i < 1000; i++)
        if (secret_sha256(SLICE_LIT("abc"), &hash) || hash.bytes[0] != 0xba)
            *(int *)arg = 1;
    return NULL;
}

START_TEST(threads_have_contexts_of_their_own)
{
    pthread_t threads[4];
    int failed[4] = {0};
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, hash_in_thread, &failed[i]), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_int_eq(failed[i], 0);
    }
}
END_TEST

START_TEST(new_keys_have_their_form)
{
    struct buf a = BUF_INIT(0), b = BUF_INIT(0);
    ck_assert_int_eq(secret_new_key(SECRET_KEY_AUTO, &a), 0);
    ck_assert_int_eq(secret_new_key(SECRET_KEY_AUTO, &b), 0);
    ck_assert_uint_eq(a.len, 51);
    ck_assert(slice_starts(buf_slice(&a), "sk-auto-"));
    ck_assert(!slice_eq(buf_slice(&a), buf_slice(&b)));
    buf_clear(&a);
    ck_assert_int_eq(secret_new_key(SECRET_KEY_SK, &a), 0);
    ck_assert_uint_eq(a.len, 51);
    struct slice digits = slice_from(buf_slice(&a), 3);
    for (size_t i = 0; i < digits.len; i++)
        ck_assert(strchr("0123456789abcdef", digits.ptr[i]) != NULL);
    buf_clear(&a);
    ck_assert_int_eq(secret_new_key(SECRET_KEY_AHG, &a), 0);
    ck_assert_uint_eq(a.len, 52);
    ck_assert(slice_starts(buf_slice(&a), "ahg_"));
    ck_assert_int_eq(secret_new_key((enum secret_scheme)9, &a), GW_EINVAL);
    ck_assert_int_eq(secret_random_base64url(1 << 20, &a), GW_ETOOBIG);
    buf_wipe(&a);
    buf_wipe(&b);
}
END_TEST

static void mask_is(bool is_short, const char *key, const char *expected)
{
    struct buf out = BUF_INIT(0);
    int err = is_short ? secret_mask_short(slice_str(key), &out)
                       : secret_mask_upstream_key(slice_str(key), &out);
    ck_assert_int_eq(err, 0);
    ck_assert_msg(slice_is(buf_slice(&out), expected), "%s: %.*s", key, SLICE_FMT(buf_slice(&out)));
    buf_free(&out);
}

START_TEST(masks_follow_their_rules)
{
    mask_is(false, "sk-1234567890", "sk-***7890");
    mask_is(false, "abcdefgh", "ab***efgh");
    mask_is(false, "sk-1234", "***");
    mask_is(false, "", "***");
    mask_is(true, "abcdefgh", "abcd****");
    mask_is(true, "abc", "****");
    mask_is(true, "abcd", "abcd****");
}
END_TEST

START_TEST(base64url_round_trips_and_is_strict)
{
    char bytes[70];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (char)(i * 37 + 11);
    for (size_t len = 0; len <= sizeof(bytes); len++) {
        for (int padded = 0; padded < 2; padded++) {
            struct buf text = BUF_INIT(0), back = BUF_INIT(0);
            ck_assert_int_eq(secret_base64url_encode(slice_of(bytes, len), padded, &text), 0);
            ck_assert_int_eq(secret_base64url_decode(buf_slice(&text), padded, &back), 0);
            ck_assert(slice_eq(buf_slice(&back), slice_of(bytes, len)));
            buf_free(&text);
            buf_free(&back);
        }
    }
    static const struct {
        const char *text;
        bool is_padded;
    } bad[] = {
        {"A", false},   {"AAAAA", false}, {"AA==", false}, {"AA", true},       {"AB==", true},
        {"AAB=", true}, {"A===", true},   {"====", true},  {"AA=A", true},     {"A+AA", true},
        {"A/AA", true}, {"AA AA", false}, {"AAA\n", true}, {"AA==AAAA", true},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct buf back = BUF_INIT(0);
        int err = secret_base64url_decode(slice_str(bad[i].text), bad[i].is_padded, &back);
        ck_assert_msg(err == GW_EINVAL, "%s: %d", bad[i].text, err);
        ck_assert_uint_eq(back.len, 0);
        buf_free(&back);
    }
}
END_TEST

START_TEST(secrets_count_references)
{
    struct secret *secret = secret_new(SLICE_LIT("a provider's key"));
    ck_assert_ptr_nonnull(secret);
    ck_assert_ptr_eq(secret_ref(secret), secret);
    secret_unref(secret);
    ck_assert(slice_is(secret_reveal(secret), "a provider's key"));
    secret_unref(secret);
    secret_unref(NULL);
    ck_assert_uint_eq(secret_reveal(NULL).len, 0);
    ck_assert(secret_equal(SLICE_LIT("abc"), SLICE_LIT("abc")));
    ck_assert(!secret_equal(SLICE_LIT("abc"), SLICE_LIT("abd")));
    ck_assert(!secret_equal(SLICE_LIT("abc"), SLICE_LIT("ab")));
    ck_assert(secret_equal(SLICE_NONE, SLICE_LIT("")));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("secret");
    TCase *tests = tcase_create("secret");
    tcase_add_test(tests, hashes_match_published_vectors);
    tcase_add_test(tests, threads_have_contexts_of_their_own);
    tcase_add_test(tests, new_keys_have_their_form);
    tcase_add_test(tests, masks_follow_their_rules);
    tcase_add_test(tests, base64url_round_trips_and_is_strict);
    tcase_add_test(tests, secrets_count_references);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}

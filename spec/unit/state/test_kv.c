// Plugins' key-value memory: time to live, caps, counters, threads.
#include "base/clock.h"
#include "state/kv.h"
#include "state_test.h"
#include <pthread.h>

static _Atomic uint64_t now_ns = UINT64_C(1000000000);

static uint64_t fake_boot(void)
{
    return now_ns;
}
static int64_t fake_wall(void)
{
    return 0;
}
static int fake_random(void *out, size_t len)
{
    memset(out, 7, len);
    return 0;
}
static const struct clock_source fake = {fake_wall, fake_boot, fake_random};

static void later(uint64_t ms)
{
    now_ns += ms * 1000000;
}

#define A SLICE_LIT("plugin-a")
#define B SLICE_LIT("plugin-b")

static void value_is(struct kv *kv, struct slice space, const char *key, const char *value)
{
    struct buf out = BUF_INIT(0);
    int err = kv_get(kv, space, slice_str(key), &out);
    if (!value)
        ck_assert_int_eq(err, GW_ENOTFOUND);
    else
        ck_assert_msg(err == 0 && slice_is(buf_slice(&out), value), "%s", key);
    buf_free(&out);
}

START_TEST(values_live_as_long_as_told)
{
    struct kv *kv = kv_new(1 << 20);
    ck_assert_int_eq(kv_set(kv, A, SLICE_LIT("k"), SLICE_LIT("one"), 0), 0);
    ck_assert_int_eq(kv_set(kv, B, SLICE_LIT("k"), SLICE_LIT("two"), 100), 0);
    value_is(kv, A, "k", "one");
    value_is(kv, B, "k", "two");
    ck_assert_int_eq(kv_add(kv, B, SLICE_LIT("k"), SLICE_LIT("x"), 0), GW_EEXISTS);
    later(99);
    value_is(kv, B, "k", "two");
    later(1);
    value_is(kv, B, "k", NULL);
    ck_assert_int_eq(kv_add(kv, B, SLICE_LIT("k"), SLICE_LIT("x"), 0), 0);
    ck_assert_int_eq(kv_set(kv, A, SLICE_LIT("k"), SLICE_NONE, 0), 0);
    value_is(kv, A, "k", "");
    ck_assert_int_eq(kv_drop(kv, A, SLICE_LIT("k")), 0);
    ck_assert_int_eq(kv_drop(kv, A, SLICE_LIT("k")), GW_ENOTFOUND);
    value_is(kv, B, "k", "x");
    // Space and key are two texts, not one.
    ck_assert_int_eq(kv_set(kv, SLICE_LIT("ab"), SLICE_LIT("c"), SLICE_LIT("1"), 0), 0);
    value_is(kv, SLICE_LIT("a"), "bc", NULL);
    kv_free(kv);
}
END_TEST

START_TEST(counters_keep_their_time_to_live)
{
    struct kv *kv = kv_new(1 << 20);
    int64_t number = 0;
    ck_assert_int_eq(kv_incr(kv, A, SLICE_LIT("n"), 5, 1000, &number), 0);
    ck_assert_int_eq(number, 5);
    later(900);
    ck_assert_int_eq(kv_incr(kv, A, SLICE_LIT("n"), -7, 1000, &number), 0);
    ck_assert_int_eq(number, -2);
    value_is(kv, A, "n", "-2");
    later(100);
    ck_assert_int_eq(kv_incr(kv, A, SLICE_LIT("n"), 1, 0, &number), 0);
    ck_assert_int_eq(number, 1);
    ck_assert_int_eq(kv_set(kv, A, SLICE_LIT("t"), SLICE_LIT("text"), 0), 0);
    ck_assert_int_eq(kv_incr(kv, A, SLICE_LIT("t"), 1, 0, &number), GW_EINVAL);
    ck_assert_int_eq(kv_set(kv, A, SLICE_LIT("m"), SLICE_LIT("9223372036854775807"), 0), 0);
    ck_assert_int_eq(kv_incr(kv, A, SLICE_LIT("m"), 1, 0, &number), GW_ETOOBIG);
    value_is(kv, A, "m", "9223372036854775807");
    kv_free(kv);
}
END_TEST

START_TEST(a_full_memory_drops_only_what_expired)
{
    struct kv *kv = kv_new(100000);
    char key[32], value[500];
    memset(value, 'v', sizeof(value));
    int err = 0, count = 0;
    for (; err == 0; count++) {
        snprintf(key, sizeof(key), "key-%d", count);
        err = kv_set(kv, A, slice_str(key), slice_of(value, sizeof(value)), count % 2 ? 50 : 0);
    }
    ck_assert_int_eq(err, GW_EFULL);
    ck_assert_int_gt(count, 100);
    // Replacing an entry by one of the same size needs no room.
    ck_assert_int_eq(kv_set(kv, A, SLICE_LIT("key-0"), slice_of(value, sizeof(value)), 0), 0);
    later(60);
    for (int i = 0; i < count / 3; i++) {
        snprintf(key, sizeof(key), "new-%d", i);
        ck_assert_int_eq(kv_set(kv, A, slice_str(key), slice_of(value, sizeof(value)), 0), 0);
    }
    value_is(kv, A, "key-1", NULL);
    struct buf out = BUF_INIT(0);
    ck_assert_int_eq(kv_get(kv, A, SLICE_LIT("key-2"), &out), 0);
    buf_free(&out);
    kv_free(kv);
}
END_TEST

static struct kv *shared;

static void *count_up(void *arg)
{
    int64_t number;
    for (int i = 0; i < 5000; i++) {
        char key[16];
        snprintf(key, sizeof(key), "k%d", i % 50);
        if (kv_incr(shared, A, SLICE_LIT("total"), 1, 0, &number) != 0 ||
            kv_set(shared, B, slice_str(key), SLICE_LIT("v"), 1 + (uint64_t)i % 3) != 0)
            *(int *)arg = 1;
    }
    return NULL;
}

START_TEST(threads_count_exactly)
{
    pthread_t threads[4];
    int failed[4] = {0};
    shared = kv_new(1 << 20);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, count_up, &failed[i]), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_int_eq(failed[i], 0);
    }
    value_is(shared, A, "total", "20000");
    kv_free(shared);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {values_live_as_long_as_told, counters_keep_their_time_to_live,
                                  a_full_memory_drops_only_what_expired, threads_count_exactly};
    clock_use(&fake);
    return test_main("kv", tests, sizeof(tests) / sizeof(tests[0]), CK_NOFORK);
}

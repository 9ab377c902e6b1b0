// map, clock, id.
#include "base/clock.h"
#include "base/id.h"
#include "base/map.h"
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

START_TEST(siphash_vectors)
{
    // The reference implementation's vectors: key 00…0f, message 00, 01, 02 … of growing length.
    static const struct {
        size_t len;
        uint64_t hash;
    } cases[] = {{0, 0x726fdb47dd0e0e31}, {1, 0x74f839c593dc67fd}, {2, 0x0d6c8009d9a94f5a},
                 {7, 0xab0200f58b01d137}, {8, 0x93f5f5799a932462}, {15, 0xa129ca6149be45e5}};
    uint8_t key[16], data[64];
    for (int i = 0; i < 16; i++)
        key[i] = (uint8_t)i;
    for (int i = 0; i < 64; i++)
        data[i] = (uint8_t)i;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        ck_assert(siphash24(key, data, cases[i].len) == cases[i].hash);
    ck_assert(map_hash(SLICE_LIT("a")) == map_hash(SLICE_LIT("a")));
    ck_assert(map_hash(SLICE_LIT("a")) != map_hash(SLICE_LIT("b")));
}
END_TEST

START_TEST(map_basics)
{
    struct map *map = map_new();
    int a, b;
    void *old = &a;
    ck_assert_ptr_null(map_get(map, SLICE_LIT("x")));
    ck_assert_ptr_null(map_take(map, SLICE_LIT("x")));
    ck_assert_int_eq(map_put(map, SLICE_LIT("x"), &a, &old), 0);
    ck_assert_ptr_null(old);
    ck_assert_int_eq(map_put(map, SLICE_LIT("x"), &b, &old), 0);
    ck_assert_ptr_eq(old, &a);
    ck_assert_int_eq(map_put(map, SLICE_NONE, &a, NULL), 0);
    ck_assert_int_eq(map_put(map, slice_of("x\0y", 3), &a, NULL), 0);
    ck_assert_uint_eq(map_count(map), 3);
    ck_assert_ptr_eq(map_get(map, SLICE_LIT("x")), &b);
    ck_assert_ptr_eq(map_take(map, SLICE_LIT("")), &a);
    ck_assert_uint_eq(map_count(map), 2);
    map_free(map, NULL);
    map_free(NULL, NULL);
}
END_TEST

START_TEST(map_model)
{
    enum { KEYS = 500 };
    static uintptr_t model[KEYS];
    struct map *map = map_new();
    unsigned seed = 7;
    size_t count = 0;
    for (int step = 0; step < 100000; step++) {
        char key[16];
        seed = seed * 1103515245u + 12345u;
        unsigned k = (seed >> 8) % KEYS;
        int len = snprintf(key, sizeof(key), "key-%u", k);
        struct slice name = slice_of(key, (size_t)len);
        // Phases of growth and of decline.
        if ((seed >> 20) % 4 < (step / 10000 % 2 ? 1u : 3u)) {
            void *old;
            ck_assert_int_eq(map_put(map, name, (void *)(uintptr_t)(step + 1), &old), 0);
            ck_assert((uintptr_t)old == model[k]);
            count += model[k] == 0;
            model[k] = (uintptr_t)(step + 1);
        } else {
            ck_assert((uintptr_t)map_take(map, name) == model[k]);
            count -= model[k] != 0;
            model[k] = 0;
        }
        ck_assert_uint_eq(map_count(map), count);
        if (step % 1000 == 0) {
            size_t iter = 0, seen = 0;
            struct slice at;
            void *value;
            while (map_next(map, &iter, &at, &value)) {
                unsigned long long index = KEYS;
                ck_assert_int_eq(slice_to_u64(slice_from(at, 4), KEYS - 1, &index), 0);
                ck_assert((uintptr_t)value == model[index]);
                seen++;
            }
            ck_assert_uint_eq(seen, count);
            for (unsigned i = 0; i < KEYS; i++) {
                len = snprintf(key, sizeof(key), "key-%u", i);
                ck_assert((uintptr_t)map_get(map, slice_of(key, (size_t)len)) == model[i]);
            }
        }
    }
    map_free(map, NULL);
}
END_TEST

static int64_t fake_wall = 1000;
static int64_t fake_wall_ms(void)
{
    return fake_wall;
}
static uint64_t fake_boot_ns(void)
{
    return 5000000;
}
static int fake_random(void *out, size_t len)
{
    memset(out, 0xab, len);
    return 0;
}
static int failing_random(void *out, size_t len)
{
    memset(out, 0, len);
    return GW_EIO;
}
static const struct clock_source fake = {fake_wall_ms, fake_boot_ns, fake_random};
static const struct clock_source failing = {fake_wall_ms, fake_boot_ns, failing_random};

START_TEST(clock_sources)
{
    uint8_t bytes[32] = {0}, zero[32] = {0};
    ck_assert_int_eq(clock_random(bytes, sizeof(bytes)), 0);
    ck_assert(memcmp(bytes, zero, sizeof(bytes)) != 0);
    ck_assert_int_gt(clock_wall_ms(), INT64_C(1700000000000));
    uint64_t before = clock_boot_ns();
    ck_assert_uint_ge(clock_boot_ns(), before);
    clock_use(&fake);
    ck_assert_int_eq(clock_wall_ms(), 1000);
    ck_assert_uint_eq(clock_boot_ms(), 5);
    clock_use(NULL);
    ck_assert_int_gt(clock_wall_ms(), INT64_C(1700000000000));
}
END_TEST

START_TEST(iso_texts)
{
    static const struct {
        const char *text;
        int err;
        int64_t ms;
        const char *canonical; // NULL: not compared
    } cases[] = {
        {"1970-01-01T00:00:00Z", 0, 0, "1970-01-01T00:00:00.000Z"},
        {"2026-11-20T18:36:01.123Z", 0, 1795199761123, "2026-11-20T18:36:01.123Z"},
        {"2026-11-20 18:36:01.1239z", 0, 1795199761123, NULL},
        {"2026-11-20t18:36:01.5+00:30", 0, 1795197961500, "2026-11-20T18:06:01.500Z"},
        {"2026-11-20T18:36:01-08:00", 0, 1795228561000, NULL},
        {"2026-11-20", 0, 1795132800000, "2026-11-20T00:00:00.000Z"},
        {"2000-02-29", 0, 951782400000, "2000-02-29T00:00:00.000Z"},
        {"1969-12-31T23:59:59.999Z", 0, -1, "1969-12-31T23:59:59.999Z"},
        {"0000-01-01", 0, -62167219200000, "0000-01-01T00:00:00.000Z"},
        {"9999-12-31T23:59:59.999Z", 0, 253402300799999, "9999-12-31T23:59:59.999Z"},
        {"2016-12-31T23:59:60Z", 0, 1483228800000, "2017-01-01T00:00:00.000Z"},
        {"1900-02-29", GW_EINVAL, 0, NULL},
        {"2026-13-01", GW_EINVAL, 0, NULL},
        {"2026-00-01", GW_EINVAL, 0, NULL},
        {"2026-04-31", GW_EINVAL, 0, NULL},
        {"2026-11-20T24:00:00Z", GW_EINVAL, 0, NULL},
        {"2026-11-20T18:36:01", GW_EINVAL, 0, NULL},
        {"2026-11-20T18:36Z", GW_EINVAL, 0, NULL},
        {"2026-11-20T18:36:01.Z", GW_EINVAL, 0, NULL},
        {"2026-11-20T18:36:01+0100", GW_EINVAL, 0, NULL},
        {"2026-11-20T18:36:01Zx", GW_EINVAL, 0, NULL},
        {"2026-1-20", GW_EINVAL, 0, NULL},
        {"2026-11-20T", GW_EINVAL, 0, NULL},
        {"", GW_EINVAL, 0, NULL},
    };
    char out[25];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int64_t ms = 0;
        int err = clock_parse_iso(cases[i].text, strlen(cases[i].text), &ms);
        ck_assert_msg(err == cases[i].err && ms == cases[i].ms, "%s: %d %lld", cases[i].text, err,
                      (long long)ms);
        if (cases[i].canonical) {
            clock_format_iso(ms, out, sizeof(out));
            ck_assert_str_eq(out, cases[i].canonical);
        }
    }
    clock_format_iso(INT64_MAX, out, sizeof(out));
    ck_assert_str_eq(out, "9999-12-31T23:59:59.999Z");
    clock_format_iso(INT64_MIN, out, sizeof(out));
    ck_assert_str_eq(out, "0000-01-01T00:00:00.000Z");
    for (int64_t day = -800000; day < 2900000; day += 13) {
        int64_t ms = day * 86400000 + 43200001, back = 0;
        if (ms < INT64_C(-62167219200000) || ms > INT64_C(253402300799999))
            continue;
        clock_format_iso(ms, out, sizeof(out));
        ck_assert(clock_parse_iso(out, 24, &back) == 0 && back == ms);
    }
}
END_TEST

START_TEST(ids_rise)
{
    struct gw_id last, id;
    char text[37];
    ck_assert_int_eq(id_new(&last), 0);
    int64_t now = clock_wall_ms();
    ck_assert_int_le(llabs(id_wall_ms(&last) - now), 5000);
    for (int i = 0; i < 50000; i++) {
        ck_assert_int_eq(id_new(&id), 0);
        ck_assert_int_lt(memcmp(&last, &id, sizeof(id)), 0);
        ck_assert_int_eq(id.bytes[6] >> 4, 7);
        ck_assert_int_eq(id.bytes[8] >> 6, 2);
        last = id;
    }
    id_format(&id, text);
    ck_assert_uint_eq(strlen(text), 36);
    ck_assert_int_eq(id_parse(slice_str(text), &last), 0);
    ck_assert_mem_eq(&last, &id, sizeof(id));
    ck_assert_int_eq(id_new_random(&id), 0);
    ck_assert_int_eq(id.bytes[6] >> 4, 4);
    ck_assert_int_eq(id.bytes[8] >> 6, 2);
}
END_TEST

START_TEST(ids_under_a_fake_clock)
{
    struct gw_id id, second;
    char text[37];
    clock_use(&fake);
    fake_wall = 0x0123456789ab;
    ck_assert_int_eq(id_new(&id), 0);
    id_format(&id, text);
    ck_assert_str_eq(text, "01234567-89ab-73ab-abab-abababababab");
    ck_assert_int_eq(id_wall_ms(&id), 0x0123456789ab);
    // A clock set back a little does not lower ids; one set back far is followed.
    fake_wall -= 500;
    ck_assert_int_eq(id_new(&second), 0);
    ck_assert_int_lt(memcmp(&id, &second, sizeof(id)), 0);
    fake_wall -= 5000;
    ck_assert_int_eq(id_new(&second), 0);
    ck_assert_int_eq(id_wall_ms(&second), fake_wall);
    // 2^12 ids in one millisecond spill into the next.
    id = second;
    for (int i = 0; i < 10000; i++) {
        ck_assert_int_eq(id_new(&second), 0);
        ck_assert_int_lt(memcmp(&id, &second, sizeof(id)), 0);
        id = second;
    }
    ck_assert_int_gt(id_wall_ms(&second), fake_wall);
    clock_use(&failing);
    ck_assert_int_eq(id_new(&id), GW_EIO);
    ck_assert_int_eq(id_new_random(&id), GW_EIO);
    clock_use(NULL);
}
END_TEST

START_TEST(ids_parse)
{
    static const struct {
        const char *text;
        int err;
    } cases[] = {{"01890a5d-ac96-774b-bcce-b302099a8057", 0},
                 {"01890A5D-AC96-774B-BCCE-B302099A8057", 0},
                 {"01890a5dac96774bbcceb302099a8057", GW_EINVAL},
                 {"01890a5d-ac96-774b-bcce-b302099a805", GW_EINVAL},
                 {"01890a5d-ac96-774b-bcce-b302099a8057 ", GW_EINVAL},
                 {"01890a5g-ac96-774b-bcce-b302099a8057", GW_EINVAL},
                 {"01890a5d0ac96-774b-bcce-b302099a8057", GW_EINVAL},
                 {"", GW_EINVAL}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct gw_id id;
        ck_assert_int_eq(id_parse(slice_str(cases[i].text), &id), cases[i].err);
        if (!cases[i].err)
            ck_assert_int_eq(id_wall_ms(&id), 0x01890a5dac96);
    }
}
END_TEST

enum { THREADS = 3, IDS = 3000 };

static void *make_ids(void *arg)
{
    struct gw_id *ids = arg;
    for (int i = 0; i < IDS; i++) {
        if (id_new(&ids[i]) != 0)
            return arg;
    }
    return NULL;
}

static int compare_ids(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct gw_id));
}

START_TEST(ids_of_threads_differ)
{
    static struct gw_id ids[THREADS * IDS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, make_ids, ids + i * IDS), 0);
    for (int i = 0; i < THREADS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        ck_assert_ptr_null(failed);
    }
    qsort(ids, THREADS * IDS, sizeof(ids[0]), compare_ids);
    for (int i = 1; i < THREADS * IDS; i++)
        ck_assert(compare_ids(&ids[i - 1], &ids[i]) != 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tables");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, siphash_vectors);
    tcase_add_test(tc, map_basics);
    tcase_add_test(tc, map_model);
    tcase_add_test(tc, clock_sources);
    tcase_add_test(tc, iso_texts);
    tcase_add_test(tc, ids_rise);
    tcase_add_test(tc, ids_under_a_fake_clock);
    tcase_add_test(tc, ids_parse);
    tcase_add_test(tc, ids_of_threads_differ);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

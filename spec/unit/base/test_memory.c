// slice, err, list, arena, buf, slab.
#include "base/arena.h"
#include "base/buf.h"
#include "base/list.h"
#include "base/poison.h"
#include "base/slab.h"
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

START_TEST(slice_functions)
{
    static const struct {
        const char *in, *out;
    } trims[] = {{"", ""}, {"  ", ""}, {" a b\t\r\n", "a b"}, {"x", "x"}, {"\r\n\tz", "z"}};
    for (size_t i = 0; i < sizeof(trims) / sizeof(trims[0]); i++)
        ck_assert(slice_is(slice_trim(slice_str(trims[i].in)), trims[i].out));
    ck_assert_uint_eq(slice_trim(SLICE_NONE).len, 0);

    static const struct {
        const char *hay, *needle;
        long at;
    } finds[] = {{"abcabc", "ca", 2}, {"abc", "", 0},   {"", "", 0},
                 {"", "a", -1},       {"abc", "d", -1}, {"ab", "abc", -1}};
    for (size_t i = 0; i < sizeof(finds) / sizeof(finds[0]); i++)
        ck_assert_int_eq(slice_find(slice_str(finds[i].hay), slice_str(finds[i].needle)),
                         finds[i].at);

    static const struct {
        const char *text;
        unsigned long long max;
        int err;
        unsigned long long value;
    } numbers[] = {{"0", 0, 0, 0},
                   {"007", 10, 0, 7},
                   {"18446744073709551615", ~0ULL, 0, ~0ULL},
                   {"18446744073709551616", ~0ULL, GW_EINVAL, 0},
                   {"11", 10, GW_EINVAL, 0},
                   {"", 10, GW_EINVAL, 0},
                   {"-1", 10, GW_EINVAL, 0},
                   {"1 ", 10, GW_EINVAL, 0},
                   {"+1", 10, GW_EINVAL, 0}};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        unsigned long long value = 0;
        ck_assert_int_eq(slice_to_u64(slice_str(numbers[i].text), numbers[i].max, &value),
                         numbers[i].err);
        ck_assert(value == numbers[i].value);
    }
    ck_assert(slice_starts(SLICE_NONE, ""));
    ck_assert(slice_ends(SLICE_LIT("abc"), "bc") && !slice_ends(SLICE_LIT("c"), "bc"));
    ck_assert(slice_is(slice_from(SLICE_LIT("abc"), 1), "bc"));
    ck_assert_uint_eq(slice_from(SLICE_LIT("abc"), 9).len, 0);
    ck_assert_uint_eq(slice_from(SLICE_NONE, 1).len, 0);
}
END_TEST

START_TEST(err_names)
{
    for (int err = 0; err >= -19; err--) {
        ck_assert_str_ne(gw_err_name(err), "unknown error");
        for (int other = 0; other > err; other--)
            ck_assert_str_ne(gw_err_name(err), gw_err_name(other));
    }
    ck_assert_str_eq(gw_err_name(-999), "unknown error");
    ck_assert(!gw_unexpected(1 + 1 == 3));
}
END_TEST

struct item {
    int value;
    struct list node;
};

START_TEST(list_order)
{
    struct list head, *pos, *tmp;
    struct item items[4];
    int sum = 0;
    list_init(&head);
    ck_assert_ptr_null(list_pop_front(&head));
    for (int i = 0; i < 4; i++) {
        items[i].value = i;
        list_node_init(&items[i].node);
        list_remove(&items[i].node);
        if (i % 2)
            list_push_front(&head, &items[i].node);
        else
            list_push_back(&head, &items[i].node);
    }
    list_each(pos, &head) sum = sum * 10 + list_entry(pos, struct item, node)->value;
    ck_assert_int_eq(sum, 3102);
    list_each_safe(pos, tmp, &head) if (list_entry(pos, struct item, node)->value % 2)
        list_remove(pos);
    ck_assert_ptr_eq(list_pop_front(&head), &items[0].node);
    ck_assert_ptr_eq(list_pop_front(&head), &items[2].node);
    ck_assert(list_is_empty(&head));
}
END_TEST

START_TEST(arena_holds_what_it_gave)
{
    static const size_t sizes[] = {0, 1, 15, 16, 17, 1000, 4096, 16384, 16385, 65536, 300000};
    enum { N = sizeof(sizes) / sizeof(sizes[0]), ROUNDS = 6 };
    unsigned char *given[N * ROUNDS];
    struct arena *arena = arena_new(100);
    ck_assert_ptr_nonnull(arena);
    for (int i = 0; i < N * ROUNDS; i++) {
        given[i] = arena_alloc(arena, sizes[i % N]);
        ck_assert_ptr_nonnull(given[i]);
        ck_assert_uint_eq((uintptr_t)given[i] % 16, 0);
        memset(given[i], i, sizes[i % N]);
    }
    for (int i = 0; i < N * ROUNDS; i++) {
        for (size_t k = 0; k < sizes[i % N]; k++)
            ck_assert(given[i][k] == i);
    }
    unsigned char *zeros = arena_zalloc(arena, 64);
    for (int k = 0; k < 64; k++)
        ck_assert(zeros[k] == 0);
    arena_free(arena);
    arena_free(NULL);
}
END_TEST

START_TEST(arena_texts_and_cap)
{
    struct arena *arena = arena_new(64);
    ck_assert_str_eq(arena_copyz(arena, SLICE_LIT("abc")), "abc");
    ck_assert_str_eq(arena_copyz(arena, SLICE_NONE), "");
    struct slice copy = arena_copy(arena, SLICE_NONE);
    ck_assert(copy.ptr != NULL && copy.len == 0);
    ck_assert(slice_is(arena_printf(arena, "%s-%d", "x", 42), "x-42"));
    arena_set_cap(arena, arena_used(arena) + 32);
    ck_assert_ptr_null(arena_alloc(arena, 33));
    ck_assert_ptr_null(arena_alloc(arena, SIZE_MAX));
    ck_assert_ptr_null(arena_alloc(arena, SIZE_MAX - 8));
    ck_assert_ptr_null(arena_printf(arena, "%100d", 1).ptr);
    ck_assert_ptr_nonnull(arena_alloc(arena, 17));
    ck_assert_ptr_null(arena_alloc(arena, 1));
    arena_reset(arena);
    ck_assert_uint_eq(arena_used(arena), 0);
    ck_assert_ptr_nonnull(arena_alloc(arena, 1));
    arena_free(arena);
}
END_TEST

static char order[32];
static void note(void *arg)
{
    size_t len = strlen(order);
    order[len] = *(const char *)arg;
    order[len + 1] = '\0';
}

START_TEST(arena_hooks)
{
    struct arena *arena = arena_new(64);
    order[0] = '\0';
    struct arena_mark mark = arena_mark(arena);
    for (const char *c = "abcdefg"; *c; c++)
        ck_assert_int_eq(arena_on_free(arena, note, (void *)(uintptr_t)c), 0);
    arena_rewind(arena, mark);
    ck_assert_str_eq(order, "");
    arena_reset(arena);
    ck_assert_str_eq(order, "gfedcba");
    ck_assert_int_eq(arena_on_free(arena, note, "x"), 0);
    arena_free(arena);
    ck_assert_str_eq(order, "gfedcbax");
}
END_TEST

// What a credential's arena gives back is zero when it is given out again.
START_TEST(arena_wipes_when_asked)
{
    struct arena *arena = arena_new(1024);
    ck_assert_ptr_nonnull(arena);
    arena_set_wiped(arena);
    for (int round = 0; round < 3; round++) {
        struct arena_mark mark = arena_mark(arena);
        char *first = arena_alloc(arena, 700);
        size_t left = 0;
        for (size_t i = 0; round && i < 700; i++)
            left += first[i] != 0;
        ck_assert_uint_eq(left, 0);
        memset(first, 'k', 700);
        for (int i = 0; i < 20; i++) // further blocks and one of its own
            memset(arena_alloc(arena, i == 7 ? 40000 : 900), 'k', 900);
        if (round == 0)
            arena_rewind(arena, mark);
        else
            arena_reset(arena);
    }
    arena_free(arena);
}
END_TEST

START_TEST(arena_rewinds)
{
    struct arena *arena = arena_new(256);
    char *keep = arena_copyz(arena, SLICE_LIT("keep"));
    char *big = arena_zalloc(arena, 100000);
    struct arena_mark outer = arena_mark(arena);
    size_t used = arena_used(arena);
    for (int turn = 0; turn < 2000; turn++) {
        char *first = arena_alloc(arena, 40);
        memset(first, 1, 40);
        struct arena_mark inner = arena_mark(arena);
        for (int i = 0; i < 20; i++)
            memset(arena_alloc(arena, 5000), 2, 5000);
        memset(arena_alloc(arena, 50000), 3, 50000);
        arena_rewind(arena, inner);
        ck_assert_int_eq(first[39], 1);
        arena_rewind(arena, outer);
        ck_assert_uint_eq(arena_used(arena), used);
    }
    ck_assert_str_eq(keep, "keep");
    ck_assert_int_eq(big[99999], 0);
    arena_free(arena);
}
END_TEST

#ifdef GW_HAS_ASAN
START_TEST(arena_poisons_unused)
{
    struct arena *arena = arena_new(256);
    char *p = arena_alloc(arena, 20);
    ck_assert(!__asan_address_is_poisoned(p + 19));
    ck_assert(__asan_address_is_poisoned(p + 20));
    struct arena_mark mark = arena_mark(arena);
    char *scratch = arena_alloc(arena, 8);
    ck_assert(!__asan_address_is_poisoned(scratch));
    arena_rewind(arena, mark);
    ck_assert(__asan_address_is_poisoned(scratch));
    arena_free(arena);
}
END_TEST
#endif

static void *use_arenas(void *arg)
{
    for (int i = 0; i < 200; i++) {
        struct arena *arenas[8];
        for (int k = 0; k < 8; k++) {
            arenas[k] = arena_new(4096);
            for (int n = 0; n < 60; n++)
                memset(arena_alloc(arenas[k], 3000), k, 3000);
        }
        for (int k = 0; k < 8; k++)
            arena_free(arenas[k]);
    }
    return arg;
}

START_TEST(arena_cache_per_thread)
{
    // Leaks of the threads' caches are LeakSanitizer's and valgrind's to find.
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, use_arenas, NULL), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
}
END_TEST

START_TEST(buf_appends)
{
    struct buf buf = BUF_INIT(0);
    ck_assert_uint_eq(buf_slice(&buf).len, 0);
    ck_assert_int_eq(buf_append(&buf, SLICE_NONE), 0);
    ck_assert_int_eq(buf_append_str(&buf, "a"), 0);
    ck_assert_int_eq(buf_append_char(&buf, ' '), 0);
    ck_assert_int_eq(buf_append_u64(&buf, UINT64_MAX), 0);
    ck_assert_int_eq(buf_append_char(&buf, ' '), 0);
    ck_assert_int_eq(buf_append_i64(&buf, INT64_MIN), 0);
    ck_assert_int_eq(buf_append_i64(&buf, 0), 0);
    ck_assert_int_eq(buf_printf(&buf, " %05d %s", 42, "end"), 0);
    ck_assert(slice_is(buf_slice(&buf), "a 18446744073709551615 -92233720368547758080 00042 end"));
    buf_consume(&buf, 2);
    buf_truncate(&buf, 4);
    ck_assert(slice_is(buf_slice(&buf), "1844"));
    memcpy(buf_room(&buf, 1000), "xyz", 3);
    buf_grew(&buf, 3);
    ck_assert(slice_is(buf_slice(&buf), "1844xyz"));
    buf_clear(&buf);
    ck_assert_uint_eq(buf.len, 0);
    buf_shrink(&buf);
    ck_assert_ptr_null(buf.mem);
    ck_assert_int_eq(buf_append_str(&buf, "again"), 0);
    buf_wipe(&buf);
    ck_assert_ptr_null(buf.mem);
}
END_TEST

START_TEST(buf_cap)
{
    struct buf buf;
    buf_init(&buf, 10);
    ck_assert_int_eq(buf_append_str(&buf, "12345678"), 0);
    ck_assert_int_eq(buf_append_str(&buf, "abc"), GW_ETOOBIG);
    ck_assert_int_eq(buf_printf(&buf, "%d", 100), GW_ETOOBIG);
    ck_assert_ptr_null(buf_room(&buf, 3));
    ck_assert_ptr_null(buf_room(&buf, SIZE_MAX));
    ck_assert(slice_is(buf_slice(&buf), "12345678"));
    ck_assert_int_eq(buf_printf(&buf, "%d", 10), 0);
    ck_assert(slice_is(buf_slice(&buf), "1234567810"));
    buf_consume(&buf, 10);
    ck_assert_int_eq(buf_append_str(&buf, "0123456789"), 0);
    buf_free(&buf);
}
END_TEST

START_TEST(buf_queue_model)
{
    // Appends and consumes against a counter: the byte at stream position n is n * 7.
    struct buf buf = BUF_INIT(5000);
    uint64_t in = 0, out = 0;
    unsigned seed = 1;
    for (int step = 0; step < 100000; step++) {
        seed = seed * 1103515245u + 12345u;
        size_t size = (seed >> 16) % 300;
        if ((seed >> 8) % 2 && in - out + size <= 5000) {
            char *room = buf_room(&buf, size);
            ck_assert_ptr_nonnull(room);
            for (size_t i = 0; i < size; i++)
                room[i] = (char)((in++ * 7) & 0xff);
            buf_grew(&buf, size);
        } else {
            if (size > buf.len)
                size = buf.len;
            for (size_t i = 0; i < size; i++, out++) {
                if (buf_slice(&buf).ptr[i] != (char)((out * 7) & 0xff))
                    ck_abort_msg("byte %llu differs", (unsigned long long)out);
            }
            buf_consume(&buf, size);
        }
        if (step % 97 == 0)
            buf_shrink(&buf);
        ck_assert_uint_eq(buf.len, in - out);
        ck_assert_uint_le(buf.capacity, 10000);
    }
    buf_free(&buf);
}
END_TEST

START_TEST(slab_handles)
{
    struct slab *slab = slab_new(40, 100);
    struct slab_handle handles[100], handle;
    void *objects[100];
    for (int i = 0; i < 100; i++) {
        objects[i] = slab_alloc(slab, &handles[i]);
        ck_assert_ptr_nonnull(objects[i]);
        ck_assert_uint_eq((uintptr_t)objects[i] % 16, 0);
        memset(objects[i], 0xff, 40);
    }
    ck_assert_ptr_null(slab_alloc(slab, &handle));
    ck_assert_uint_eq(slab_count(slab), 100);
    ck_assert_ptr_eq(slab_get(slab, handles[70]), objects[70]);
    slab_free(slab, objects[70]);
    ck_assert_ptr_null(slab_get(slab, handles[70]));
    // Not reused inside the turn, and the dead object can still be read.
    ck_assert_ptr_null(slab_alloc(slab, &handle));
    ck_assert_int_eq(((unsigned char *)objects[70])[39], 0xff);
    slab_sweep(slab);
    unsigned char *again = slab_alloc(slab, &handle);
    ck_assert_ptr_eq(again, objects[70]);
    ck_assert_int_eq(again[39], 0);
    ck_assert_uint_eq(handle.index, handles[70].index);
    ck_assert_uint_ne(handle.generation, handles[70].generation);
    ck_assert_ptr_null(slab_get(slab, handles[70]));
    ck_assert_ptr_eq(slab_get(slab, handle), again);
    ck_assert_ptr_null(slab_get(slab, (struct slab_handle){0, 0}));
    ck_assert_ptr_null(slab_get(slab, (struct slab_handle){1000, 1}));
    slab_free(slab, NULL);
    slab_destroy(slab);
    slab_destroy(NULL);
}
END_TEST

START_TEST(slab_gives_back_what_a_crowd_took)
{
    enum { CROWD = 5000, STAYS = 3000 };
    struct slab *slab = slab_new(1000, 100000);
    static struct slab_handle handles[CROWD], again[CROWD];
    static unsigned char *objects[CROWD];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < CROWD; i++) {
            objects[i] = slab_alloc(slab, &handles[i]);
            ck_assert_ptr_nonnull(objects[i]);
            ck_assert_int_eq(objects[i][0] + objects[i][999], 0);
            memset(objects[i], i % 250 + 1, 1000);
        }
        ck_assert_uint_ge(slab_bytes(slab), CROWD * 1000);
        for (int i = 0; i < CROWD; i++) {
            if (i != STAYS)
                slab_free(slab, objects[i]);
            if (i % 100 == 0)
                slab_sweep(slab);
        }
        slab_sweep(slab);
        ck_assert_uint_eq(slab_count(slab), 1);
        ck_assert_uint_le(slab_bytes(slab), 1024 * 1100);
        ck_assert_ptr_eq(slab_get(slab, handles[STAYS]), objects[STAYS]);
        ck_assert_int_eq(objects[STAYS][999], STAYS % 250 + 1);
        for (int i = 0; i < CROWD; i++)
            ck_assert(i == STAYS || slab_get(slab, handles[i]) == NULL);
        // One by one it stays small.
        for (int i = 0; i < CROWD; i++) {
            void *one = slab_alloc(slab, &again[i]);
            ck_assert_ptr_eq(slab_get(slab, again[i]), one);
            ck_assert(i == STAYS || slab_get(slab, handles[i]) == NULL);
            slab_free(slab, one);
            slab_sweep(slab);
        }
        ck_assert_uint_le(slab_bytes(slab), 1024 * 1100);
        slab_free(slab, objects[STAYS]);
        slab_sweep(slab);
    }
    slab_destroy(slab);
}
END_TEST

START_TEST(slab_aborts_on_double_free)
{
    struct slab *slab = slab_new(8, 4);
    void *object = slab_alloc(slab, NULL);
    slab_free(slab, object);
    slab_free(slab, object);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, slice_functions);
    tcase_add_test(tc, err_names);
    tcase_add_test(tc, list_order);
    tcase_add_test(tc, arena_holds_what_it_gave);
    tcase_add_test(tc, arena_wipes_when_asked);
    tcase_add_test(tc, arena_texts_and_cap);
    tcase_add_test(tc, arena_hooks);
    tcase_add_test(tc, arena_rewinds);
#ifdef GW_HAS_ASAN
    tcase_add_test(tc, arena_poisons_unused);
#endif
    tcase_add_test(tc, arena_cache_per_thread);
    tcase_add_test(tc, buf_appends);
    tcase_add_test(tc, buf_cap);
    tcase_add_test(tc, buf_queue_model);
    tcase_add_test(tc, slab_handles);
    tcase_add_test(tc, slab_gives_back_what_a_crowd_took);
    suite_add_tcase(suite, tc);
    // The requirement that fails must end a process: that one test forks.
    TCase *fatal = tcase_create("fatal");
    tcase_add_test_raise_signal(fatal, slab_aborts_on_double_free, 6);
    Suite *fatal_suite = suite_create("fatal");
    suite_add_tcase(fatal_suite, fatal);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    SRunner *fatal_runner = srunner_create(fatal_suite);
    srunner_set_fork_status(fatal_runner, CK_FORK);
    srunner_run_all(fatal_runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner) + srunner_ntests_failed(fatal_runner);
    srunner_free(runner);
    srunner_free(fatal_runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

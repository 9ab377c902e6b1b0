#include "io/resolver.h"

#include "base/clock.h"

#include <arpa/inet.h>
#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <uv.h>

// ---- a clock that can be moved, a look-up that counts and can be held

static _Atomic uint64_t skipped_ns;

static uint64_t fake_boot_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec + skipped_ns;
}

static int64_t fake_wall_ms(void)
{
    return 0;
}

static int fake_random(void *out, size_t len)
{
    memset(out, 7, len);
    return 0;
}

static const struct clock_source fake_clock = {fake_wall_ms, fake_boot_ns, fake_random};

static atomic_int lookup_count;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_moved = PTHREAD_COND_INITIALIZER;
static bool gate_is_closed;
static int gate_waiting;

static void set_gate(bool is_closed)
{
    pthread_mutex_lock(&gate);
    gate_is_closed = is_closed;
    pthread_cond_broadcast(&gate_moved);
    pthread_mutex_unlock(&gate);
}

static void wait_for_gate(int count)
{
    pthread_mutex_lock(&gate);
    while (gate_waiting < count)
        pthread_cond_wait(&gate_moved, &gate);
    pthread_mutex_unlock(&gate);
}

static int look_up(const char *host, struct resolver_result *result)
{
    atomic_fetch_add(&lookup_count, 1);
    pthread_mutex_lock(&gate);
    gate_waiting++;
    pthread_cond_broadcast(&gate_moved);
    while (gate_is_closed)
        pthread_cond_wait(&gate_moved, &gate);
    gate_waiting--;
    pthread_mutex_unlock(&gate);
    if (strncmp(host, "bad", 3) == 0)
        return GW_EDNS;
    if (strcmp(host, "empty.test") == 0)
        return 0;
    struct sockaddr_in *v4 = (void *)&result->addresses[0];
    v4->sin_family = AF_INET;
    v4->sin_addr.s_addr = htonl(0x0a000001);
    struct sockaddr_in6 *v6 = (void *)&result->addresses[1];
    v6->sin6_family = AF_INET6;
    v6->sin6_addr.s6_addr[15] = 9;
    result->count = 2;
    return 0;
}

struct answer {
    int calls, err;
    size_t count;
    struct sockaddr_storage first, second;
};

static void on_result(void *user, const struct resolver_result *result)
{
    struct answer *answer = user;
    answer->calls++;
    answer->err = result->err;
    answer->count = result->count;
    answer->first = result->addresses[0];
    answer->second = result->addresses[1];
}

static void turn(struct loop *loop)
{
    struct pollfd ready = {.fd = uv_backend_fd(loop_uv(loop)), .events = POLLIN};
    poll(&ready, 1, 5);
    loop_turn(loop);
}

static void wait_for(struct loop *loop, const struct answer *answer, int calls)
{
    for (int i = 0; i < 2000 && answer->calls < calls; i++)
        turn(loop);
    ck_assert_int_eq(answer->calls, calls);
}

static struct loop *loop;
static struct resolver *resolver;

static void set_up(void)
{
    set_gate(false);
    lookup_count = 0;
    ck_assert_int_eq(loop_new(NULL, &loop), 0);
    resolver = resolver_new(2, look_up);
    ck_assert_ptr_nonnull(resolver);
}

static void tear_down(void)
{
    loop_free(loop);
    resolver_free(resolver);
}

static struct resolver_query *ask(const char *host, struct answer *answer)
{
    struct resolver_query *query = NULL;
    ck_assert_int_eq(resolver_start(resolver, loop, slice_str(host), on_result, answer, &query), 0);
    return query;
}

START_TEST(test_literals)
{
    struct answer answer = {0};
    ck_assert_ptr_null(ask("192.0.2.7", &answer));
    ck_assert_int_eq(answer.calls, 1);
    ck_assert_int_eq(answer.err, 0);
    ck_assert_uint_eq(answer.count, 1);
    ck_assert_int_eq(answer.first.ss_family, AF_INET);
    ck_assert_uint_eq(((struct sockaddr_in *)(void *)&answer.first)->sin_addr.s_addr,
                      htonl(0xc0000207));
    ck_assert_ptr_null(ask("2001:db8::1", &answer));
    ck_assert_int_eq(answer.calls, 2);
    ck_assert_int_eq(answer.first.ss_family, AF_INET6);
    ck_assert_int_eq(lookup_count, 0);
}
END_TEST

START_TEST(test_names)
{
    struct answer answer = {0};
    ck_assert_ptr_nonnull(ask("Upstream.Test", &answer));
    ck_assert_int_eq(answer.calls, 0);
    wait_for(loop, &answer, 1);
    ck_assert_int_eq(answer.err, 0);
    ck_assert_uint_eq(answer.count, 2);
    ck_assert_int_eq(answer.first.ss_family, AF_INET);
    ck_assert_int_eq(answer.second.ss_family, AF_INET6);
    ck_assert_int_eq(((struct sockaddr_in6 *)(void *)&answer.second)->sin6_addr.s6_addr[15], 9);
    // Again, in other letters: at once and from the cache.
    ck_assert_ptr_null(ask("upstream.TEST", &answer));
    ck_assert_int_eq(answer.calls, 2);
    ck_assert_uint_eq(answer.count, 2);
    ck_assert_int_eq(lookup_count, 1);
}
END_TEST

START_TEST(test_times)
{
    struct answer answer = {0};
    ask("good.test", &answer);
    wait_for(loop, &answer, 1);
    skipped_ns += 58000000000u;
    ck_assert_ptr_null(ask("good.test", &answer));
    skipped_ns += 3000000000u;
    ck_assert_ptr_nonnull(ask("good.test", &answer));
    wait_for(loop, &answer, 3);
    ck_assert_int_eq(lookup_count, 2);

    ask("bad.test", &answer);
    wait_for(loop, &answer, 4);
    ck_assert_int_eq(answer.err, GW_EDNS);
    skipped_ns += 3000000000u;
    ck_assert_ptr_null(ask("bad.test", &answer));
    ck_assert_int_eq(answer.err, GW_EDNS);
    skipped_ns += 3000000000u;
    ck_assert_ptr_nonnull(ask("bad.test", &answer));
    wait_for(loop, &answer, 6);
    ck_assert_int_eq(lookup_count, 4);

    ask("empty.test", &answer); // no address at all is a failure
    wait_for(loop, &answer, 7);
    ck_assert_int_eq(answer.err, GW_EDNS);
}
END_TEST

START_TEST(test_single_flight)
{
    struct answer answers[20] = {0};
    set_gate(true);
    for (int i = 0; i < 20; i++)
        ck_assert_ptr_nonnull(ask("one.test", &answers[i]));
    wait_for_gate(1);
    set_gate(false);
    for (int i = 0; i < 20; i++)
        wait_for(loop, &answers[i], 1);
    ck_assert_int_eq(lookup_count, 1);
    ck_assert_uint_eq(resolver_counters(resolver).look_ups, 1);
}
END_TEST

START_TEST(test_cancel)
{
    struct answer kept = {0}, dropped = {0};
    set_gate(true);
    struct resolver_query *first = ask("one.test", &dropped);
    ask("one.test", &kept);
    ask("two.test", &kept);
    wait_for_gate(2);
    struct resolver_query *queued = ask("three.test", &dropped);
    ask("three.test", &kept);
    resolver_cancel(first);  // while it is looked up
    resolver_cancel(queued); // before it is
    set_gate(false);
    wait_for(loop, &kept, 3);
    turn(loop);
    ck_assert_int_eq(dropped.calls, 0);
}
END_TEST

START_TEST(test_cancel_posted)
{
    // One thread: once it is at the second name the first one's answer is on its way.
    struct resolver *single = resolver_new(1, look_up);
    struct answer kept = {0}, dropped = {0};
    struct resolver_query *first, *second;
    ck_assert_int_eq(
        resolver_start(single, loop, SLICE_LIT("one.test"), on_result, &dropped, &first), 0);
    ck_assert_int_eq(resolver_start(single, loop, SLICE_LIT("two.test"), on_result, &kept, &second),
                     0);
    for (int i = 0; lookup_count < 2 && i < 5000; i++)
        poll(NULL, 0, 1);
    resolver_cancel(first);
    wait_for(loop, &kept, 1);
    ck_assert_int_eq(dropped.calls, 0);
    // And some that are never delivered: resolver_free has them.
    ck_assert_int_eq(
        resolver_start(single, loop, SLICE_LIT("three.test"), on_result, &dropped, &first), 0);
    ck_assert_int_eq(
        resolver_start(single, loop, SLICE_LIT("four.test"), on_result, &dropped, &second), 0);
    for (int i = 0; lookup_count < 4 && i < 5000; i++)
        poll(NULL, 0, 1);
    resolver_cancel(first);
    resolver_cancel(second);
    loop_free(loop);
    resolver_free(single);
    ck_assert_int_eq(loop_new(NULL, &loop), 0);
    ck_assert_int_eq(dropped.calls, 0);
}
END_TEST

START_TEST(test_names_refused)
{
    struct resolver_query *query;
    struct answer answer = {0};
    char longest[300];
    memset(longest, 'a', sizeof longest);
    ck_assert_int_eq(resolver_start(resolver, loop, SLICE_LIT(""), on_result, &answer, &query),
                     GW_EINVAL);
    ck_assert_int_eq(
        resolver_start(resolver, loop, slice_of(longest, 254), on_result, &answer, &query),
        GW_EINVAL);
    ck_assert_int_eq(
        resolver_start(resolver, loop, slice_of("a\0b", 3), on_result, &answer, &query), GW_EINVAL);
    ck_assert_int_eq(answer.calls, 0);
}
END_TEST

START_TEST(test_bounded)
{
    // More names than the cache holds: all are answered, the oldest are forgotten.
    struct answer answer = {0};
    char host[32];
    for (int i = 0; i < 5000; i++) {
        snprintf(host, sizeof host, "n%d.test", i);
        int calls = answer.calls;
        ask(host, &answer);
        wait_for(loop, &answer, calls + 1);
    }
    ck_assert_int_eq(lookup_count, 5000);
    ck_assert_ptr_null(ask("n4999.test", &answer));
    ck_assert_ptr_nonnull(ask("n0.test", &answer));
    wait_for(loop, &answer, 5002);
    ck_assert_int_eq(lookup_count, 5001);
}
END_TEST

START_TEST(test_too_many_waiting)
{
    static struct answer answers[4097];
    memset(answers, 0, sizeof answers);
    struct resolver_query *query;
    char host[32];
    set_gate(true);
    for (int i = 0; i < 4096; i++) {
        snprintf(host, sizeof host, "w%d.test", i);
        ask(host, &answers[i]);
    }
    ck_assert_int_eq(
        resolver_start(resolver, loop, SLICE_LIT("more.test"), on_result, &answers[4096], &query),
        GW_EFULL);
    set_gate(false);
    for (int i = 0; i < 4096; i++)
        wait_for(loop, &answers[i], 1);
}
END_TEST

// ---- several loops at once (for the thread sanitizer)

struct asker {
    pthread_t thread;
    struct resolver *resolver;
    unsigned seed;
    int answered, cancelled;
};

static void *run_asker(void *arg)
{
    struct asker *asker = arg;
    struct loop *own;
    if (loop_new(NULL, &own) != 0)
        abort();
    for (int round = 0; round < 100; round++) {
        struct answer answers[8] = {0};
        bool is_cancelled[8] = {0};
        for (int i = 0; i < 8; i++) {
            char host[32];
            struct resolver_query *query;
            asker->seed = asker->seed * 1103515245u + 12345u;
            snprintf(host, sizeof host, "%s%d.test", asker->seed & 0x10000 ? "bad" : "h",
                     round * 4 + (int)(asker->seed >> 20) % 5);
            if (resolver_start(asker->resolver, own, slice_str(host), on_result, &answers[i],
                               &query) != 0)
                abort();
            if (query != NULL && (asker->seed & 0x60000) == 0) {
                if (asker->seed & 0x80000)
                    turn(own);
                if (answers[i].calls == 0) {
                    resolver_cancel(query);
                    is_cancelled[i] = true;
                    asker->cancelled++;
                }
            }
        }
        for (int i = 0; i < 8; i++) {
            for (int spins = 0; !is_cancelled[i] && answers[i].calls == 0 && spins < 4000; spins++)
                turn(own);
            if (answers[i].calls != (is_cancelled[i] ? 0 : 1))
                abort();
            asker->answered += answers[i].calls;
        }
    }
    loop_free(own);
    return NULL;
}

START_TEST(test_threads)
{
    struct asker askers[3];
    int answered = 0, cancelled = 0;
    for (unsigned i = 0; i < 3; i++) {
        askers[i] = (struct asker){.resolver = resolver, .seed = i + 1};
        ck_assert_int_eq(pthread_create(&askers[i].thread, NULL, run_asker, &askers[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(askers[i].thread, NULL);
        answered += askers[i].answered;
        cancelled += askers[i].cancelled;
    }
    ck_assert_int_eq(answered + cancelled, 2400);
    ck_assert_int_gt(cancelled, 0);
}
END_TEST

START_TEST(test_system)
{
    struct resolver *real = resolver_new(2, NULL);
    struct answer answer = {0};
    struct resolver_query *query;
    ck_assert_int_eq(resolver_start(real, loop, SLICE_LIT("localhost"), on_result, &answer, &query),
                     0);
    wait_for(loop, &answer, 1);
    ck_assert_int_eq(answer.err, 0);
    ck_assert_uint_ge(answer.count, 1);
    resolver_free(real);
}
END_TEST

int main(void)
{
    clock_use(&fake_clock);
    Suite *suite = suite_create("resolver");
    TCase *tcase = tcase_create("resolver");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, test_literals);
    tcase_add_test(tcase, test_names);
    tcase_add_test(tcase, test_times);
    tcase_add_test(tcase, test_single_flight);
    tcase_add_test(tcase, test_cancel);
    tcase_add_test(tcase, test_cancel_posted);
    tcase_add_test(tcase, test_names_refused);
    tcase_add_test(tcase, test_bounded);
    tcase_add_test(tcase, test_too_many_waiting);
    tcase_add_test(tcase, test_threads);
    tcase_add_test(tcase, test_system);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

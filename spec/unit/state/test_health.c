// Health slots: cool-down, circuit, the one probe, counts under threads.
#include "state/health.h"
#include "state_test.h"
#include <pthread.h>

static struct health *health;
static struct health_slot *slot;
static struct health_view view;

static void setup(void)
{
    health = health_new();
    slot = health_slot_of(health, 7);
    ck_assert_ptr_eq(slot, health_slot_of(health, 7));
    ck_assert_ptr_ne(slot, health_slot_of(health, 7 + 256));
}

static void end(uint64_t now, enum health_result result)
{
    health_begin(slot, now);
    health_end(slot, now, result, 0, -1);
}

START_TEST(five_failures_open_and_one_probe_decides)
{
    setup();
    for (int i = 0; i < 4; i++)
        end(1000, HEALTH_SERVER_ERROR);
    end(1000, HEALTH_OK);
    for (int i = 0; i < 4; i++)
        end(1000, i % 2 ? HEALTH_CONNECT_ERROR : HEALTH_TIMEOUT);
    ck_assert(health_is_usable(slot, 1000));
    // What says nothing of the upstream neither counts nor breaks the row.
    end(1000, HEALTH_CLIENT_ERROR);
    end(1000, HEALTH_CANCELLED);
    end(1000, HEALTH_SERVER_ERROR);
    ck_assert(!health_is_usable(slot, 1000));
    ck_assert(!health_take_probe(slot, 1000));
    health_read(slot, 1000, &view);
    ck_assert_int_eq(view.circuit, HEALTH_OPEN);
    ck_assert_uint_eq(view.cool_until_ms, 11000);
    ck_assert_uint_eq(view.failures_in_row, 5);
    ck_assert(!health_is_usable(slot, 10999));
    // Half open: one probe.
    ck_assert(health_is_usable(slot, 11000));
    health_read(slot, 11000, &view);
    ck_assert_int_eq(view.circuit, HEALTH_HALF_OPEN);
    ck_assert(health_take_probe(slot, 11000));
    ck_assert(!health_take_probe(slot, 11000));
    ck_assert(!health_is_usable(slot, 11000));
    health_begin(slot, 11000);
    health_end(slot, 11500, HEALTH_CONNECT_ERROR, 0, -1);
    ck_assert(!health_is_usable(slot, 21499));
    ck_assert(health_is_usable(slot, 21500));
    health_begin(slot, 21500); // takes the probe by itself
    ck_assert(!health_is_usable(slot, 21500));
    health_end(slot, 21600, HEALTH_CANCELLED, 0, -1); // gives it back
    ck_assert(health_is_usable(slot, 21600));
    health_begin(slot, 21600);
    // A probe that never ends gives the permission back in time.
    ck_assert(!health_is_usable(slot, 81599));
    ck_assert(health_is_usable(slot, 81600));
    health_end(slot, 81600, HEALTH_OK, 100, -1);
    health_read(slot, 81600, &view);
    ck_assert_int_eq(view.circuit, HEALTH_CLOSED);
    ck_assert_uint_eq(view.failures_in_row, 0);
    ck_assert_uint_eq(view.in_flight, 0);
    health_free(health);
}
END_TEST

START_TEST(rate_limits_cool_as_told_and_at_most_a_minute)
{
    setup();
    health_begin(slot, 1000);
    health_end(slot, 1000, HEALTH_RATE_LIMITED, 0, 3000);
    ck_assert(!health_is_usable(slot, 3999));
    ck_assert(health_is_usable(slot, 4000));
    health_begin(slot, 5000);
    health_end(slot, 5000, HEALTH_RATE_LIMITED, 0, 3600000);
    health_read(slot, 5000, &view);
    ck_assert_uint_eq(view.cool_until_ms, 65000);
    ck_assert_int_eq(view.circuit, HEALTH_CLOSED);
    // The last usable one is tried nevertheless: a success ends the cooling.
    end(6000, HEALTH_OK);
    ck_assert(health_is_usable(slot, 6000));
    for (int i = 0; i < 10; i++)
        end(6000, HEALTH_RATE_LIMITED);
    ck_assert(health_is_usable(slot, 11000));
    health_free(health);
}
END_TEST

START_TEST(latency_is_a_moving_average)
{
    setup();
    health_begin(slot, 1);
    health_end(slot, 1, HEALTH_OK, 800, -1);
    health_read(slot, 1, &view);
    ck_assert_uint_eq(view.latency_ms, 800);
    for (int i = 0; i < 100; i++) {
        health_begin(slot, 1);
        health_end(slot, 1, HEALTH_OK, 100, -1);
    }
    health_read(slot, 1, &view);
    ck_assert_uint_ge(view.latency_ms, 99);
    ck_assert_uint_le(view.latency_ms, 101);
    health_begin(slot, 1);
    health_end(slot, 1, HEALTH_CONNECT_ERROR, 0, -1);
    health_read(slot, 1, &view);
    ck_assert_uint_le(view.latency_ms, 101);
    ck_assert_uint_eq(view.succeeded, 101);
    ck_assert_uint_eq(view.failed, 1);
    ck_assert_uint_eq(view.started, 102);
    health_free(health);
}
END_TEST

static void *use(void *arg)
{
    uint64_t probes = 0;
    for (int i = 0; i < 5000; i++) {
        struct health_slot *own = health_slot_of(health, i % 300);
        health_begin(own, (uint64_t)i);
        health_end(own, (uint64_t)i, HEALTH_OK, 5, -1);
        health_begin(slot, 20000);
        probes += health_take_probe(slot, 20000);
        health_end(slot, 20000, HEALTH_CANCELLED, 1, -1);
    }
    *(uint64_t *)arg = probes;
    return NULL;
}

START_TEST(threads_share_slots)
{
    setup();
    pthread_t threads[4];
    uint64_t probes[4];
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, use, &probes[i]), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    health_read(slot, 20000, &view);
    ck_assert_uint_eq(view.in_flight, 0);
    uint64_t started = 0;
    for (int i = 0; i < 300; i++) {
        health_read(health_slot_of(health, i), 0, &view);
        ck_assert_uint_eq(view.in_flight, 0);
        started += view.started;
    }
    ck_assert_uint_eq(started, 40000);
    health_free(health);
}
END_TEST

TEST_MAIN("health", five_failures_open_and_one_probe_decides,
          rate_limits_cool_as_told_and_at_most_a_minute, latency_is_a_moving_average,
          threads_share_slots)

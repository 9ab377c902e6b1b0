// The loop: lazy timers against a model, tasks, messages, the epoch turn, closing.
#include "base/clock.h"
#include "io/loop.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

static uint64_t now_ms = 5000;

static uint64_t fake_boot_ns(void)
{
    return now_ms * 1000000u;
}

static int64_t fake_wall_ms(void)
{
    return 0;
}

static int fake_random(void *out, size_t len)
{
    memset(out, 1, len);
    return 0;
}

static const struct clock_source fake_clock = {
    .wall_ms = fake_wall_ms, .boot_ns = fake_boot_ns, .random = fake_random};

static struct loop *new_loop(void)
{
    struct loop *loop;
    ck_assert_int_eq(loop_new(NULL, &loop), 0);
    return loop;
}

static void turn_at(struct loop *loop, uint64_t ms)
{
    now_ms = ms;
    loop_turn(loop);
}

struct probe {
    struct loop_timer timer;
    int fired;
    uint64_t at;
    uint64_t again_ms; // restarts itself from its callback
    struct loop_timer *stops;
};

static void on_expire(struct loop_timer *timer)
{
    struct probe *probe = list_entry(timer, struct probe, timer);
    probe->fired++;
    probe->at = loop_now_ms(timer->loop);
    if (probe->again_ms != UINT64_MAX)
        loop_timer_start(timer, probe->again_ms);
    if (probe->stops)
        loop_timer_stop(probe->stops);
}

static void probe_init(struct loop *loop, struct probe *probe)
{
    *probe = (struct probe){.again_ms = UINT64_MAX};
    loop_timer_init(loop, &probe->timer, on_expire);
}

START_TEST(timers_fire_once_and_in_time)
{
    clock_use(&fake_clock);
    now_ms = 5000;
    struct loop *loop = new_loop();
    static const uint64_t delays[] = {0,    2,     63,    64,     65,     100,      4095,    4096,
                                      4097, 10000, 60000, 262144, 262145, 16777216, 1u << 30};
    enum { COUNT = sizeof delays / sizeof delays[0] };
    struct probe probes[COUNT];
    for (int i = 0; i < COUNT; i++) {
        probe_init(loop, &probes[i]);
        loop_timer_start(&probes[i].timer, delays[i]);
        ck_assert(loop_timer_is_running(&probes[i].timer));
    }
    for (int i = 0; i < COUNT; i++) {
        uint64_t due = 5000 + (delays[i] ? delays[i] : 1); // 0 ms: the next turn, not this one
        turn_at(loop, due - 1);
        ck_assert_int_eq(probes[i].fired, 0);
        turn_at(loop, due);
        ck_assert_int_eq(probes[i].fired, 1);
        ck_assert_uint_eq(probes[i].at, due);
        ck_assert(!loop_timer_is_running(&probes[i].timer));
    }
    loop_free(loop);
    clock_use(NULL);
}
END_TEST

START_TEST(timers_against_a_model)
{
    clock_use(&fake_clock);
    now_ms = 777;
    struct loop *loop = new_loop();
    enum { COUNT = 64 };
    struct probe probes[COUNT];
    uint64_t deadline[COUNT] = {0}; // 0: not running
    int fired[COUNT] = {0};
    uint64_t seed = 42;
    for (int i = 0; i < COUNT; i++)
        probe_init(loop, &probes[i]);
    for (int step = 0; step < 200000; step++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        unsigned which = (unsigned)(seed >> 33) % COUNT, what = (unsigned)(seed >> 40) % 8;
        uint64_t span = (uint64_t)1 << ((seed >> 45) % 24);
        uint64_t delay = 1 + (seed >> 20) % span;
        if (what < 4) {
            loop_timer_start(&probes[which].timer, delay);
            deadline[which] = loop_now_ms(loop) + delay;
        } else if (what == 4) {
            loop_timer_stop(&probes[which].timer);
            deadline[which] = 0;
        } else {
            turn_at(loop, now_ms + (what == 5 ? 1 : delay / 4));
            for (int i = 0; i < COUNT; i++) {
                if (deadline[i] && deadline[i] <= now_ms) {
                    fired[i]++;
                    deadline[i] = 0;
                }
            }
        }
        for (int i = 0; i < COUNT; i++) {
            // Check stores a record per assertion, too slow for millions of them.
            if (probes[i].fired != fired[i] ||
                loop_timer_is_running(&probes[i].timer) != (deadline[i] != 0))
                ck_abort_msg("timer %d at step %d: fired %d times, not %d", i, step,
                             probes[i].fired, fired[i]);
        }
    }
    loop_free(loop);
    clock_use(NULL);
}
END_TEST

START_TEST(timers_are_lazy_and_reentrant)
{
    clock_use(&fake_clock);
    now_ms = 1000;
    struct loop *loop = new_loop();
    struct probe one, two;
    probe_init(loop, &one);
    probe_init(loop, &two);
    // Restarted for later many times: only the deadline moves.
    loop_timer_start(&one.timer, 100);
    uint64_t armed = one.timer.armed_ms;
    for (int i = 0; i < 10; i++) {
        turn_at(loop, now_ms + 9);
        loop_timer_start(&one.timer, 100);
    }
    ck_assert_uint_eq(one.timer.armed_ms, armed);
    turn_at(loop, 1189);
    ck_assert_int_eq(one.fired, 0);
    turn_at(loop, 1190);
    ck_assert_int_eq(one.fired, 1);
    // For earlier: it moves.
    loop_timer_start(&one.timer, 1000);
    loop_timer_start(&one.timer, 10);
    turn_at(loop, 1200);
    ck_assert_int_eq(one.fired, 2);
    // Of two that are due in one turn the first stops the second.
    one.stops = &two.timer;
    loop_timer_start(&one.timer, 5);
    loop_timer_start(&two.timer, 5);
    turn_at(loop, 1300);
    ck_assert_int_eq(one.fired, 3);
    ck_assert_int_eq(two.fired, 0);
    // One that starts itself with 0 ms does not hold up the turn.
    two.again_ms = 0;
    loop_timer_start(&two.timer, 0);
    for (int i = 1; i <= 5; i++) {
        turn_at(loop, 1300 + (uint64_t)i);
        ck_assert_int_eq(two.fired, i);
    }
    loop_timer_stop(&two.timer);
    loop_free(loop);
    clock_use(NULL);
}
END_TEST

struct job {
    struct loop_task task;
    struct loop *loop;
    int runs, repeats;
    struct loop_task *cancels;
};

static void run_job(struct loop_task *task)
{
    struct job *job = list_entry(task, struct job, task);
    job->runs++;
    if (job->cancels)
        loop_task_cancel(job->cancels);
    if (job->repeats-- > 0)
        loop_defer(job->loop, task);
}

START_TEST(tasks)
{
    struct loop *loop = new_loop();
    struct job one = {.loop = loop}, two = {.loop = loop};
    loop_task_init(&one.task, run_job);
    loop_task_init(&two.task, run_job);
    loop_defer(loop, &one.task);
    loop_defer(loop, &one.task); // queued once
    ck_assert(!loop_turn(loop));
    ck_assert_int_eq(one.runs, 1);
    // 16 rounds in a turn, the rest in the next.
    one = (struct job){.loop = loop, .repeats = 20};
    loop_task_init(&one.task, run_job);
    loop_defer(loop, &one.task);
    ck_assert(loop_turn(loop));
    ck_assert_int_eq(one.runs, 16);
    ck_assert(!loop_turn(loop));
    ck_assert_int_eq(one.runs, 21);
    // A task cancels one that stands in the same round.
    one.cancels = &two.task;
    one.repeats = 0;
    loop_defer(loop, &one.task);
    loop_defer(loop, &two.task);
    loop_turn(loop);
    ck_assert_int_eq(two.runs, 0);
    loop_free(loop);
}
END_TEST

struct note {
    struct loop_message message;
    struct loop *loop;
    uint32_t sender, number;
    uint32_t *next;
    int *left;
};

static void deliver(struct loop_message *message)
{
    struct note *note = list_entry(message, struct note, message);
    if (note->next[note->sender]++ != note->number) // in order of each sender
        ck_abort_msg("message %u of sender %u came out of order", note->number, note->sender);
    if (--*note->left == 0)
        loop_stop(note->loop);
    free(note);
}

enum { SENDERS = 4, NOTES = 20000 };

struct sender {
    struct loop *loop;
    uint32_t which;
    uint32_t *next;
    int *left;
};

static void *send_notes(void *arg)
{
    struct sender *sender = arg;
    for (uint32_t i = 0; i < NOTES; i++) {
        struct note *note = calloc(1, sizeof *note);
        *note = (struct note){.message.deliver = deliver,
                              .loop = sender->loop,
                              .sender = sender->which,
                              .number = i,
                              .next = sender->next,
                              .left = sender->left};
        loop_post(sender->loop, &note->message);
    }
    return NULL;
}

START_TEST(messages)
{
    struct loop *loop = new_loop();
    uint32_t next[SENDERS] = {0};
    int left = SENDERS * NOTES;
    pthread_t threads[SENDERS];
    struct sender senders[SENDERS];
    for (uint32_t i = 0; i < SENDERS; i++) {
        senders[i] = (struct sender){.loop = loop, .which = i, .next = next, .left = &left};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, send_notes, &senders[i]), 0);
    }
    loop_run(loop); // a lost wake-up would hang here
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_int_eq(left, 0);
    loop_free(loop);
}
END_TEST

static void stop_at(struct loop_timer *timer)
{
    loop_stop(timer->loop);
}

START_TEST(run_blocks_until_the_timer)
{
    struct loop *loop = new_loop();
    struct loop_timer timer;
    loop_timer_init(loop, &timer, stop_at);
    loop_timer_start(&timer, 60);
    uint64_t before = clock_boot_ms(), turns = loop_turn_count(loop);
    clock_t cpu = clock();
    loop_run(loop);
    uint64_t took = clock_boot_ms() - before;
    ck_assert_uint_ge(took, 59);
    ck_assert_uint_lt(loop_turn_count(loop) - turns, 12); // it slept, it did not spin
    ck_assert_int_lt((int)((clock() - cpu) * 1000 / CLOCKS_PER_SEC), 40);
    loop_free(loop);
}
END_TEST

static int freed_count;

static void count_free(void *object)
{
    (void)object;
    freed_count++;
}

struct epoch_probe {
    struct epoch *epoch;
    uv_poll_t poll;
    size_t remaining_in_callback;
    int fd;
};

static void in_callback(uv_poll_t *poll, int status, int events)
{
    struct epoch_probe *probe = poll->data;
    char byte;
    (void)status;
    (void)events;
    ck_assert_int_eq((int)read(probe->fd, &byte, 1), 1);
    // Retired inside a turn: this reader is inside, so it must stay until the turn's end.
    ck_assert_int_eq(epoch_retire(probe->epoch, probe, count_free), 0);
    epoch_reclaim(probe->epoch);
    epoch_reclaim(probe->epoch);
    probe->remaining_in_callback = epoch_reclaim(probe->epoch);
}

START_TEST(epoch_turn)
{
    struct epoch *epoch = epoch_new(2);
    struct epoch_reader *reader = epoch_register(epoch);
    struct loop *loop;
    ck_assert_int_eq(loop_new(reader, &loop), 0);
    int pair[2];
    ck_assert_int_eq(pipe(pair), 0);
    struct epoch_probe probe = {.epoch = epoch, .fd = pair[0]};
    uv_poll_init(loop_uv(loop), &probe.poll, pair[0]);
    probe.poll.data = &probe;
    uv_poll_start(&probe.poll, UV_READABLE, in_callback);
    ck_assert_int_eq((int)write(pair[1], "x", 1), 1);
    freed_count = 0;
    while (loop_turn(loop))
        continue;
    ck_assert_uint_eq(probe.remaining_in_callback, 1);
    for (int i = 0; i < 4 && freed_count == 0; i++)
        epoch_reclaim(epoch); // between turns the worker holds nothing back
    ck_assert_int_eq(freed_count, 1);
    loop_free(loop);
    close(pair[0]);
    close(pair[1]);
    epoch_unregister(reader);
    epoch_destroy(epoch);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loop");
    TCase *tcase = tcase_create("loop");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, timers_fire_once_and_in_time);
    tcase_add_test(tcase, timers_against_a_model);
    tcase_add_test(tcase, timers_are_lazy_and_reentrant);
    tcase_add_test(tcase, tasks);
    tcase_add_test(tcase, messages);
    tcase_add_test(tcase, run_blocks_until_the_timer);
    tcase_add_test(tcase, epoch_turn);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}

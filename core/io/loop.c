// The event loop of one worker. libuv calls I/O callbacks from inside its own poll, so there is no
// place in uv_run between "woke up" and "first callback" where the epoch could be entered. The
// loop therefore blocks by itself: poll(2) on uv's backend descriptor, then uv_run(NOWAIT), which
// finds the events. That is one cheap system call more per turn and keeps an idle worker out of
// the epoch.
#include "io/loop.h"

#include "base/clock.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <uv.h>

#define LEVELS 6u
#define SLOT_BITS 6u
#define SLOTS (1u << SLOT_BITS)
#define PLACE_NONE UINT32_MAX
#define PLACE_DUE (UINT32_MAX - 1u)
#define MAX_DELAY_MS ((uint64_t)1 << (LEVELS * SLOT_BITS - 1u))

#define MAX_TASK_ROUNDS 16
#define MAX_MESSAGES_PER_TURN 4096
#define NEVER UINT64_MAX

struct wheel {
    uint64_t elapsed_ms; // everything up to here has been looked at
    uint64_t occupied[LEVELS];
    struct list slots[LEVELS][SLOTS];
};

struct loop {
    uv_loop_t uv;
    uv_async_t wake;
    struct epoch_reader *reader;
    struct mpsc messages;
    _Atomic unsigned posters; // threads inside loop_post
    struct list tasks;
    struct wheel wheel;
    uint64_t now_ms;
    uint64_t turn_count;
    uint64_t turn_start_ns, turn_end_ns; // of the last turn
    loop_watch_cb on_turn;
    void *watch_user;
    bool has_backlog;
    atomic_bool is_stopping;
};

// ---- the wheel

// The level is the highest 6-bit digit in which `when` differs from the present: a timer sits in
// the coarsest slot that still starts in the future and moves down as time comes near.
static void wheel_insert(struct wheel *wheel, struct loop_timer *timer)
{
    uint64_t when = timer->armed_ms;
    uint64_t differs = (when ^ wheel->elapsed_ms) | (SLOTS - 1u);
    unsigned level = (63u - (unsigned)__builtin_clzll(differs)) / SLOT_BITS;
    if (level >= LEVELS)
        level = LEVELS - 1u;
    unsigned slot = (unsigned)(when >> (level * SLOT_BITS)) & (SLOTS - 1u);
    list_push_back(&wheel->slots[level][slot], &timer->node);
    wheel->occupied[level] |= (uint64_t)1 << slot;
    timer->place = level * SLOTS + slot;
}

static void wheel_remove(struct wheel *wheel, struct loop_timer *timer)
{
    list_remove(&timer->node);
    if (timer->place < LEVELS * SLOTS) {
        unsigned level = timer->place / SLOTS, slot = timer->place % SLOTS;
        if (list_is_empty(&wheel->slots[level][slot]))
            wheel->occupied[level] &= ~((uint64_t)1 << slot);
    }
    timer->place = PLACE_NONE;
}

// When the first occupied slot starts (NEVER when none is); lower levels always come first.
static uint64_t wheel_next(const struct wheel *wheel, unsigned *out_level, unsigned *out_slot)
{
    for (unsigned level = 0; level < LEVELS; level++) {
        uint64_t occupied = wheel->occupied[level];
        if (!occupied)
            continue;
        unsigned shift = level * SLOT_BITS;
        unsigned at = (unsigned)(wheel->elapsed_ms >> shift) & (SLOTS - 1u);
        uint64_t turned = at ? occupied >> at | occupied << (SLOTS - at) : occupied;
        unsigned slot = ((unsigned)__builtin_ctzll(turned) + at) & (SLOTS - 1u);
        uint64_t range = (uint64_t)1 << (shift + SLOT_BITS);
        uint64_t start = (wheel->elapsed_ms & ~(range - 1u)) + ((uint64_t)slot << shift);
        if (start < wheel->elapsed_ms && slot != at)
            start += range; // only the top level wraps
        *out_level = level;
        *out_slot = slot;
        return start;
    }
    return NEVER;
}

static void run_timers(struct loop *loop)
{
    struct wheel *wheel = &loop->wheel;
    struct list due;
    list_init(&due);
    unsigned level = 0, slot = 0;
    for (;;) {
        uint64_t start = wheel_next(wheel, &level, &slot);
        if (start > loop->now_ms)
            break;
        if (start > wheel->elapsed_ms)
            wheel->elapsed_ms = start;
        struct list moving;
        list_init(&moving);
        struct list *head = &wheel->slots[level][slot], *node;
        while ((node = list_pop_front(head)))
            list_push_back(&moving, node);
        wheel->occupied[level] &= ~((uint64_t)1 << slot);
        while ((node = list_pop_front(&moving))) {
            struct loop_timer *timer = list_entry(node, struct loop_timer, node);
            if (timer->armed_ms <= loop->now_ms && timer->deadline_ms > timer->armed_ms)
                timer->armed_ms = timer->deadline_ms; // it was restarted for later
            if (timer->armed_ms > loop->now_ms) {
                wheel_insert(wheel, timer);
            } else {
                timer->place = PLACE_DUE;
                list_push_back(&due, node);
            }
        }
    }
    if (loop->now_ms > wheel->elapsed_ms)
        wheel->elapsed_ms = loop->now_ms;
    struct list *node;
    while ((node = list_pop_front(&due))) {
        struct loop_timer *timer = list_entry(node, struct loop_timer, node);
        timer->place = PLACE_NONE;
        timer->on_expire(timer);
    }
}

void loop_timer_init(struct loop *loop, struct loop_timer *timer,
                     void (*on_expire)(struct loop_timer *timer))
{
    list_init(&timer->node);
    timer->deadline_ms = timer->armed_ms = 0;
    timer->place = PLACE_NONE;
    timer->loop = loop;
    timer->on_expire = on_expire;
}

void loop_timer_start(struct loop_timer *timer, uint64_t delay_ms)
{
    struct wheel *wheel = &timer->loop->wheel;
    if (delay_ms > MAX_DELAY_MS)
        delay_ms = MAX_DELAY_MS;
    uint64_t deadline = timer->loop->now_ms + delay_ms;
    // A timer of 0 ms started by a timer fires in the next turn, never in the same one.
    if (deadline <= wheel->elapsed_ms)
        deadline = wheel->elapsed_ms + 1u;
    timer->deadline_ms = deadline;
    if (timer->place != PLACE_NONE) {
        if (timer->place != PLACE_DUE && timer->armed_ms <= deadline)
            return;
        wheel_remove(wheel, timer);
    }
    timer->armed_ms = deadline;
    wheel_insert(wheel, timer);
}

void loop_timer_stop(struct loop_timer *timer)
{
    if (timer->place != PLACE_NONE)
        wheel_remove(&timer->loop->wheel, timer);
}

bool loop_timer_is_running(const struct loop_timer *timer)
{
    return timer->place != PLACE_NONE;
}

// ---- tasks

void loop_task_init(struct loop_task *task, void (*run)(struct loop_task *task))
{
    list_init(&task->node);
    task->run = run;
}

void loop_defer(struct loop *loop, struct loop_task *task)
{
    if (list_is_empty(&task->node))
        list_push_back(&loop->tasks, &task->node);
}

void loop_task_cancel(struct loop_task *task)
{
    list_remove(&task->node);
}

static void run_tasks(struct loop *loop)
{
    for (int round = 0; round < MAX_TASK_ROUNDS && !list_is_empty(&loop->tasks); round++) {
        // What is deferred from here on belongs to the next round. The list is walked by its
        // head, so a task may cancel any other.
        struct list now, *node;
        list_init(&now);
        list_insert_before(&loop->tasks, &now);
        list_remove(&loop->tasks);
        while ((node = list_pop_front(&now))) {
            struct loop_task *task = list_entry(node, struct loop_task, node);
            task->run(task);
        }
    }
}

// ---- messages

void loop_post(struct loop *loop, struct loop_message *message)
{
    // The message may be delivered, and the loop end, before this thread has left here.
    atomic_fetch_add_explicit(&loop->posters, 1, memory_order_relaxed);
    if (mpsc_push(&loop->messages, &message->node))
        uv_async_send(&loop->wake);
    atomic_fetch_sub_explicit(&loop->posters, 1, memory_order_release);
}

static void on_wake(uv_async_t *wake)
{
    struct loop *loop = wake->data;
    for (unsigned count = 0; count < MAX_MESSAGES_PER_TURN; count++) {
        struct mpsc_node *node = mpsc_pop(&loop->messages);
        if (!node) {
            if (mpsc_sleep(&loop->messages))
                return;
            continue;
        }
        struct loop_message *message = list_entry(node, struct loop_message, node);
        message->deliver(message);
    }
    uv_async_send(wake); // the rest in the next turn: descriptors must not starve
}

// ---- turns

int loop_new(struct epoch_reader *reader, struct loop **out)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return GW_ENOMEM;
    if (uv_loop_init(&loop->uv) != 0) {
        free(loop);
        return GW_EIO;
    }
    if (uv_async_init(&loop->uv, &loop->wake, on_wake) != 0) {
        uv_loop_close(&loop->uv);
        free(loop);
        return GW_EIO;
    }
    loop->wake.data = loop;
    loop->reader = reader;
    list_init(&loop->tasks);
    atomic_init(&loop->is_stopping, false);
    mpsc_init(&loop->messages);
    gw_require(mpsc_sleep(&loop->messages));
    loop->turn_start_ns = loop->turn_end_ns = clock_boot_ns();
    loop->now_ms = loop->turn_end_ns / 1000000u;
    loop->wheel.elapsed_ms = loop->now_ms;
    for (unsigned level = 0; level < LEVELS; level++)
        for (unsigned slot = 0; slot < SLOTS; slot++)
            list_init(&loop->wheel.slots[level][slot]);
    *out = loop;
    return 0;
}

static void enter_epoch(struct loop *loop)
{
    if (loop->reader)
        epoch_enter(loop->reader);
}

static void leave_epoch(struct loop *loop)
{
    if (loop->reader)
        epoch_leave(loop->reader);
}

// Milliseconds until something is due: -1 for never.
static int next_timeout(struct loop *loop)
{
    if (!list_is_empty(&loop->tasks))
        return 0;
    int timeout = uv_backend_timeout(&loop->uv);
    if (timeout == 0)
        return 0;
    unsigned level, slot;
    uint64_t next = wheel_next(&loop->wheel, &level, &slot);
    if (next == NEVER)
        return timeout;
    uint64_t now = loop->turn_end_ns / 1000000u;
    if (next <= now)
        return 0;
    uint64_t delay = next - now;
    if (timeout >= 0 && (uint64_t)timeout <= delay)
        return timeout;
    return delay > 60000u ? 60000 : (int)delay;
}

static void block(struct loop *loop)
{
    int timeout = next_timeout(loop);
    if (timeout == 0)
        return;
    struct pollfd ready = {.fd = uv_backend_fd(&loop->uv), .events = POLLIN, .revents = 0};
    // An interrupted poll is a turn with nothing ready; signals come through uv like all else.
    (void)poll(&ready, 1, timeout);
}

static void run_turn(struct loop *loop)
{
    enter_epoch(loop);
    uint64_t now_ns = clock_boot_ns();
    if (now_ns / 1000000u > loop->now_ms)
        loop->now_ms = now_ns / 1000000u;
    if (loop->on_turn && loop->turn_count)
        loop->on_turn(loop->watch_user, now_ns,
                      (loop->turn_end_ns - loop->turn_start_ns) * (loop->has_backlog ? 2 : 1),
                      now_ns > loop->turn_end_ns ? now_ns - loop->turn_end_ns : 0);
    loop->has_backlog = false;
    loop->turn_start_ns = now_ns;
    loop->turn_count++;
    uv_run(&loop->uv, UV_RUN_NOWAIT);
    run_timers(loop);
    run_tasks(loop);
    leave_epoch(loop);
    uint64_t end_ns = clock_boot_ns(); // also what the next wait is reckoned from
    loop->turn_end_ns = end_ns > now_ns ? end_ns : now_ns;
}

void loop_run(struct loop *loop)
{
    while (!atomic_load_explicit(&loop->is_stopping, memory_order_acquire)) {
        block(loop);
        run_turn(loop);
    }
    atomic_store_explicit(&loop->is_stopping, false, memory_order_release);
}

bool loop_turn(struct loop *loop)
{
    run_turn(loop);
    return next_timeout(loop) == 0;
}

void loop_stop(struct loop *loop)
{
    atomic_store_explicit(&loop->is_stopping, true, memory_order_release);
    uv_async_send(&loop->wake);
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    while (atomic_load_explicit(&loop->posters, memory_order_acquire) > 0)
        sched_yield(); // a few instructions
    enter_epoch(loop);
    run_tasks(loop); // just-freed lists and the like
    uv_walk(&loop->uv, close_handle, NULL);
    while (uv_run(&loop->uv, UV_RUN_DEFAULT) != 0)
        continue;
    run_tasks(loop);
    leave_epoch(loop);
    gw_require(uv_loop_close(&loop->uv) == 0);
    free(loop);
}

struct uv_loop_s *loop_uv(struct loop *loop)
{
    return &loop->uv;
}

uint64_t loop_now_ms(const struct loop *loop)
{
    return loop->now_ms;
}

uint64_t loop_turn_count(const struct loop *loop)
{
    return loop->turn_count;
}

void loop_note_backlog(struct loop *loop)
{
    loop->has_backlog = true;
}

void loop_watch(struct loop *loop, loop_watch_cb on_turn, void *user)
{
    loop->on_turn = on_turn;
    loop->watch_user = user;
}

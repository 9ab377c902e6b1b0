#pragma once
// One event loop per worker thread: uv, plus what every module needs from it: end-of-turn tasks,
// lazy timers, messages from other threads, and the epoch turn. The only place that knows how a
// turn is put together:
//
//   poll → uv callbacks → [tasks until none is left] → epoch leave → block in poll → epoch enter …
//
// Worker thread only, but for loop_post and loop_stop.
#include "base/epoch.h"
#include "base/err.h"
#include "base/list.h"
#include "base/mpsc.h"
#include <stdint.h>

struct loop;
struct uv_loop_s;

// reader may be NULL (no epoch). Gives a loop.
GW_MUSTCHECK int loop_new(struct epoch_reader *reader, struct loop **out);
void loop_free(struct loop *loop); // closes what is still open; after loop_run returned
void loop_run(struct loop *loop);  // until loop_stop
// One turn without blocking (tests): runs ready callbacks and tasks; true while work is pending.
bool loop_turn(struct loop *loop);
void loop_stop(struct loop *loop); // any thread
struct uv_loop_s *loop_uv(struct loop *loop);
uint64_t loop_now_ms(const struct loop *loop); // boot time, cached once per turn
uint64_t loop_turn_count(const struct loop *loop);
// Called as a turn begins, with what the one before cost: busy_ns of work, then waited_ns until
// something was ready (next to nothing: it was there already). One watcher; NULL takes it off.
typedef void (*loop_watch_cb)(void *user, uint64_t now_ns, uint64_t busy_ns, uint64_t waited_ns);
void loop_watch(struct loop *loop, loop_watch_cb on_turn, void *user);
// This turn leaves work of its kind to the next one (connections not yet accepted): who waits there
// waits a turn longer, and the watcher is told twice the work.
void loop_note_backlog(struct loop *loop);

// Runs once at the end of this turn (before the loop may block). A task may be deferred again from
// its own run: it then runs in the next round of the same turn, at most 16 rounds, then next turn.
struct loop_task {
    struct list node;
    void (*run)(struct loop_task *task);
};
void loop_task_init(struct loop_task *task, void (*run)(struct loop_task *task));
void loop_defer(struct loop *loop, struct loop_task *task); // again while queued: nothing
void loop_task_cancel(struct loop_task *task);

// Lazy timers: starting a running timer for later only stores the deadline; when the old one
// expires it is looked at again. So a timer may be restarted on every event at no cost. They live
// in a hierarchical wheel of 1 ms: no allocation, so starting one cannot fail.
struct loop_timer {
    struct list node;
    uint64_t deadline_ms, armed_ms; // when it should fire; when the wheel looks at it
    uint32_t place;                 // loop.c's: which slot of the wheel
    struct loop *loop;
    void (*on_expire)(struct loop_timer *timer);
};
void loop_timer_init(struct loop *loop, struct loop_timer *timer,
                     void (*on_expire)(struct loop_timer *timer));
void loop_timer_start(struct loop_timer *timer, uint64_t delay_ms);
void loop_timer_stop(struct loop_timer *timer);
bool loop_timer_is_running(const struct loop_timer *timer);

// A message from any thread; deliver runs on the loop's thread and owns the message again.
struct loop_message {
    struct mpsc_node node;
    void (*deliver)(struct loop_message *message);
};
// Any thread. After loop_free has begun messages are not delivered: stop the senders first.
void loop_post(struct loop *loop, struct loop_message *message);

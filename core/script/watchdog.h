#pragma once
// One thread that looks at every Lua state of the process and sees which of them has been inside
// Lua for too long. What a look finds, in order:
//
//   more CPU time than the entry's budget   the worker is sent SIGURG; its handler makes the count
//                                           hook fire at the next instruction, which ends the code
//                                           (state.c). For instructions that are dear one by one.
//   lua.watchdog_ms                         a log line names the plugin while it is stuck: inside
//                                           one C call, or in a loop that the JIT compiled
//   lua.stuck_ms                            the process ends with a message that names the plugin.
//                                           One thread cannot be ended safely; the supervisor
//                                           starts the process again.
//
// Entering and leaving Lua costs a worker two stores and no clock: the thread measures. It counts
// its own looks, so a process that was stopped (SIGSTOP, a suspended machine) is not taken for
// stuck.
#include "base/err.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

// Where one Lua state says what it does. Written by its own thread, read by the watchdog.
struct watchdog_slot {
    _Atomic uint64_t entry; // odd: inside Lua; rises with each entry and leave
    // Constants of the process (watchdog_name, literals). NULL: nobody's code.
    _Atomic(const char *) plugin;
    _Atomic(const char *) what;
    _Atomic uint64_t urged; // the entry that is to end
    // The watchdog's, under its mutex.
    bool is_taken;
    pthread_t thread;
    uint32_t budget_ms; // CPU time of one entry; 0: not ended
    uint64_t seen, cpu_ns, stuck_ns;
    bool is_named;
};

struct watchdog_options {
    int64_t slow_ms, stuck_ms; // 0: off
};
// Starts the thread; counted. Any thread. The last options count.
GW_MUSTCHECK int watchdog_start(const struct watchdog_options *options);
void watchdog_stop(void);

// A slot for a state of the calling thread, which must give it back before it ends. NULL: none is
// left, the state runs unwatched.
struct watchdog_slot *watchdog_slot_take(uint32_t budget_ms);
void watchdog_slot_drop(struct watchdog_slot *slot);
// The same text, valid for ever. NULL: out of memory.
const char *watchdog_name(const char *plugin);
// What ends the process; the default writes the message to descriptor 2 and aborts. For tests.
void watchdog_set_end(void (*end)(const char *message));
// Called in the handler of SIGURG, on the worker's thread. Async-signal-safe.
void watchdog_set_urge(void (*urge)(void));

static inline void watchdog_enter(struct watchdog_slot *slot)
{
    uint64_t entry = atomic_load_explicit(&slot->entry, memory_order_relaxed);
    atomic_store_explicit(&slot->entry, entry + 1, memory_order_release);
}

static inline void watchdog_leave(struct watchdog_slot *slot)
{
    watchdog_enter(slot);
}

struct watchdog_work { // whose code runs
    const char *plugin, *what;
};

static inline struct watchdog_work watchdog_work_of(const struct watchdog_slot *slot)
{
    return (struct watchdog_work){atomic_load_explicit(&slot->plugin, memory_order_relaxed),
                                  atomic_load_explicit(&slot->what, memory_order_relaxed)};
}

static inline void watchdog_set_work(struct watchdog_slot *slot, struct watchdog_work work)
{
    atomic_store_explicit(&slot->plugin, work.plugin, memory_order_relaxed);
    atomic_store_explicit(&slot->what, work.what, memory_order_relaxed);
}

static inline bool watchdog_is_urged(const struct watchdog_slot *slot)
{
    return atomic_load_explicit(&slot->urged, memory_order_relaxed) ==
           atomic_load_explicit(&slot->entry, memory_order_relaxed);
}

#pragma once
// One clock for all bench tools of a machine (CLOCK_MONOTONIC, so a stamp that the upstream writes
// into an event can be read by the load tool), and timers in a binary heap. One thread.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

static inline uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct timer {
    uint64_t due_ns;
    size_t place; // 1 + index in the heap; 0: not armed
    void (*fire)(struct timer *timer);
};

struct timers {
    struct timer **heap;
    size_t count, capacity;
};
// Arms, or arms anew. The timer's memory is the caller's.
void timer_start(struct timers *timers, struct timer *timer, uint64_t due_ns);
void timer_stop(struct timers *timers, struct timer *timer);
// Fires what is due; gives the nanoseconds to the next one, UINT64_MAX: none.
uint64_t timers_run(struct timers *timers);
void timers_free(struct timers *timers);

struct epoll_event;
// epoll_wait with nanoseconds (UINT64_MAX: no end); interrupted: 0.
int clock_wait(int poll, struct epoll_event *events, int max, uint64_t wait_ns);

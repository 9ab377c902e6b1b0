#include "common/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

static void put(struct timers *timers, size_t at, struct timer *timer)
{
    timers->heap[at] = timer;
    timer->place = at + 1;
}

static void sift_up(struct timers *timers, size_t at, struct timer *timer)
{
    while (at > 0) {
        size_t parent = (at - 1) / 2;
        if (timers->heap[parent]->due_ns <= timer->due_ns)
            break;
        put(timers, at, timers->heap[parent]);
        at = parent;
    }
    put(timers, at, timer);
}

static void sift_down(struct timers *timers, size_t at, struct timer *timer)
{
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= timers->count)
            break;
        if (child + 1 < timers->count &&
            timers->heap[child + 1]->due_ns < timers->heap[child]->due_ns)
            child++;
        if (timers->heap[child]->due_ns >= timer->due_ns)
            break;
        put(timers, at, timers->heap[child]);
        at = child;
    }
    put(timers, at, timer);
}

void timer_stop(struct timers *timers, struct timer *timer)
{
    if (timer->place == 0)
        return;
    size_t at = timer->place - 1;
    timer->place = 0;
    struct timer *last = timers->heap[--timers->count];
    if (last == timer)
        return;
    if (at > 0 && timers->heap[(at - 1) / 2]->due_ns > last->due_ns)
        sift_up(timers, at, last);
    else
        sift_down(timers, at, last);
}

void timer_start(struct timers *timers, struct timer *timer, uint64_t due_ns)
{
    timer_stop(timers, timer);
    if (timers->count == timers->capacity) {
        timers->capacity = timers->capacity ? 2 * timers->capacity : 64;
        timers->heap = realloc(timers->heap, timers->capacity * sizeof(struct timer *));
        if (!timers->heap) {
            perror("timers");
            exit(1);
        }
    }
    timer->due_ns = due_ns;
    sift_up(timers, timers->count++, timer);
}

uint64_t timers_run(struct timers *timers)
{
    while (timers->count > 0) {
        struct timer *first = timers->heap[0];
        uint64_t now = clock_ns();
        if (first->due_ns > now)
            return first->due_ns - now;
        timer_stop(timers, first);
        first->fire(first);
    }
    return UINT64_MAX;
}

void timers_free(struct timers *timers)
{
    free(timers->heap);
    *timers = (struct timers){0};
}

int clock_wait(int poll, struct epoll_event *events, int max, uint64_t wait_ns)
{
    struct timespec wait = {.tv_sec = (time_t)(wait_ns / 1000000000u),
                            .tv_nsec = (long)(wait_ns % 1000000000u)};
    int count = epoll_pwait2(poll, events, max, wait_ns == UINT64_MAX ? NULL : &wait, NULL);
    if (count < 0 && errno == ENOSYS)
        count = epoll_wait(poll, events, max,
                           wait_ns == UINT64_MAX ? -1 : (int)((wait_ns + 999999) / 1000000));
    return count < 0 ? 0 : count;
}

#pragma once
// The CPU time of a process, its threads and its children from their own accounting
// (/proc/PID/task/*/schedstat, nanoseconds), and its memory. One thread.
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define WATCH_THREADS 128

struct watch_thread {
    pid_t pid, tid;
    char name[16];
    uint64_t ns;
};
struct watch {
    struct watch_thread threads[WATCH_THREADS];
    size_t count;
    uint64_t rss_kb, peak_kb; // of all processes together
    uint32_t files;           // open descriptors of the first process
};
// Reads PID and all its descendants.
void watch_read(pid_t pid, struct watch *watch);
// Nanoseconds between two readings by thread name into names and ns, largest first; gives the
// number of names. A thread that came between counts from 0; one that went is lost.
struct watch_sum {
    char name[16];
    uint64_t ns;
};
size_t watch_diff(const struct watch *before, const struct watch *after, struct watch_sum *sums,
                  size_t max, uint64_t *total_ns);

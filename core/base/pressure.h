#pragma once
// Memory pressure of the process. A small thread of its own reads the resident size every 250 ms,
// compares it with a cap and publishes one bit; workers only load that bit and never read /proc.
// At 95 % of the cap the pressure is high, below 90 % it is over: between the two it stays as it
// was. What follows from it (which work is refused) is the readers' business.
//
//     pressure_start(pressure_cap(conf->memory_bytes), NULL, &pressure);
//     if (pressure_is_high(pressure)) …
//
// The owner (main) starts and stops it; everything else may be called by any thread.
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>

#define PRESSURE_SAMPLE_MS 250

struct pressure;

// Where a sample comes from; tests bring their own.
struct pressure_source {
    int64_t (*resident_bytes)(void *user); // < 0: cannot be read; the last state stays
    void (*give_back)(void *user);         // returns free heap pages to the system
    void *user;
};

struct pressure_view {
    uint64_t resident_bytes, cap_bytes;
    uint64_t changes; // how often it became high
    bool is_high;
};

// Makes it and takes one sample; source NULL: /proc/self/statm and malloc_trim (kept: the caller
// keeps the source). It does not run by itself yet.
GW_MUSTCHECK int pressure_new(uint64_t cap_bytes, const struct pressure_source *source,
                              struct pressure **out);
// Starts the thread that samples.
GW_MUSTCHECK int pressure_start(struct pressure *pressure);
void pressure_free(struct pressure *pressure); // ends the thread; NULL is fine
// One sample, as the thread takes it.
void pressure_sample(struct pressure *pressure);
bool pressure_is_high(const struct pressure *pressure); // NULL: never
void pressure_read(const struct pressure *pressure, struct pressure_view *view);

// The cap: `configured` when it is not 0, else the memory limit of the control group (version 2,
// then 1), else 80 % of the machine's memory. 0: nothing could be found out. Reads files.
uint64_t pressure_cap(uint64_t configured);
// The limit of the control groups under `root` ("" for the real system); 0: none is set.
uint64_t pressure_cgroup_limit(const char *root);

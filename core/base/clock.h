#pragma once
// Time and randomness as a table of functions, so that tests and the sim build bring their own.
// Wall time is for people and stored rows; every timer and window uses boot time (it goes on while
// the machine sleeps and never jumps). Any thread.
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>

struct clock_source {
    int64_t (*wall_ms)(void);             // ms since 1970 UTC
    uint64_t (*boot_ns)(void);            // CLOCK_BOOTTIME
    int (*random)(void *out, size_t len); // cryptographic; 0 or GW_EIO
};

int64_t clock_wall_ms(void);
uint64_t clock_boot_ns(void);
static inline uint64_t clock_boot_ms(void)
{
    return clock_boot_ns() / 1000000u;
}
// Boot time that may lag by some milliseconds and costs a fifth: for coarse durations.
uint64_t clock_coarse_ms(void);
GW_MUSTCHECK int clock_random(void *out, size_t len);
// Replaces the source (tests, sim); NULL restores the system's. Before threads start.
void clock_use(const struct clock_source *source);

// Changes with each clock_use and in a forked child: whoever buffers randomness throws it away
// then.
uint32_t clock_generation(void);

// Writes "2026-11-20T18:36:01.123Z" (24 characters and NUL; size ≥ 25).
void clock_format_iso(int64_t wall_ms, char *out, size_t size);
// Reads RFC 3339 ("Z" or an offset, a space for "T", fraction optional) and plain dates.
GW_MUSTCHECK int clock_parse_iso(const char *text, size_t len, int64_t *wall_ms);

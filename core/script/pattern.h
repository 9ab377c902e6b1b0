#pragma once
// Lua patterns (find, match, gmatch, gsub) with a bound on the work: the library's own matcher can
// take hours in one C call, which no instruction budget sees. Pure; any thread.
#include "base/slice.h"
#include <stddef.h>
#include <stdint.h>

#define PATTERN_MAX_CAPTURES 32
#define PATTERN_POSITION (-2) // len of a position capture

struct pattern {
    const char *subject, *subject_end, *pattern_end;
    uint64_t steps;    // left; at 0 matching stops with an error
    const char *error; // constant text, NULL: none
    int level;         // captures
    int depth;
    struct {
        const char *start;
        ptrdiff_t len;
    } captures[PATTERN_MAX_CAPTURES];
};
void pattern_init(struct pattern *state, struct slice subject, struct slice pattern,
                  uint64_t steps);
// Matches at `at` exactly (no anchor handling); end of the match or NULL (see error).
const char *pattern_match(struct pattern *state, const char *at, const char *pattern);

#pragma once
// The state of skim's scanner, which lies in struct skim's `opaque`. Private to skim's files.
#include "codec/skim.h"
#include <assert.h>

enum state {
    STATE_VALUE,        // a value must come
    STATE_ARRAY_FIRST,  // a value or ]
    STATE_OBJECT_FIRST, // a name or }
    STATE_NAME,         // a name must come
    STATE_COLON,
    STATE_AFTER, // a value has ended
    STATE_STRING,
    STATE_UTF8,     // inside a character of several bytes
    STATE_ESCAPE,   // after a backslash
    STATE_HEX,      // inside \uXXXX
    STATE_LOW,      // after a high surrogate
    STATE_LOW_U,    // after a high surrogate and a backslash
    STATE_LITERAL,  // inside true, false, null
    STATE_MINUS,    // after -
    STATE_ZERO,     // after a leading 0
    STATE_INTEGER,  // in 1…
    STATE_POINT,    // after .
    STATE_FRACTION, // in the digits after it
    STATE_E,        // after e
    STATE_E_SIGN,   // after its sign
    STATE_EXPONENT, // in its digits
};

#define NODE_NONE 0
#define NODE_ROOT 1
#define INDEX_NONE UINT32_MAX

struct machine {
    const struct skim_node *nodes;      // of the plan
    uint64_t seen[SKIM_MAX_NODES / 64]; // bit per node: met in the object now open
    uint64_t objects;                   // bit per depth: an object, not an array
    uint64_t key_start;
    const char *literal;  // what must still come of it
    uint32_t value_paths; // of the scalar being read
    uint32_t members, max_members;
    uint32_t hex, high;
    uint8_t state, depth, max_depth, hex_left;
    uint8_t node; // of the value being read or due
    uint8_t utf8_left, utf8_min, utf8_max;
    bool is_lenient, is_name, wants_name, has_escapes, is_name_cut;
    uint8_t name_len;
    char name[SKIM_MAX_NAME];
    uint8_t nodes_at[SKIM_MAX_DEPTH];
    uint32_t counts[SKIM_MAX_DEPTH];
};
static_assert(sizeof(struct machine) <= sizeof((struct skim){0}.opaque), "opaque is too small");
static_assert(SKIM_MAX_DEPTH <= 64, "objects has a bit per depth");
static_assert(SKIM_MAX_NODES < 256 && SKIM_MAX_NODES % 64 == 0 && SKIM_MAX_PATHS <= 32,
              "nodes are bytes, paths are bits");

static inline struct machine *machine_of(struct skim *skim)
{
    return (struct machine *)(void *)skim->opaque;
}

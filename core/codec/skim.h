#pragma once
// skim: a single-pass, incremental, validating JSON scanner. It builds no tree and uses constant
// memory: it checks the grammar and records where the values of a few declared paths lie, so that
// bodies pass byte for byte and edits are splices (patch.h). It accepts exactly what yyjson accepts
// (0.10, YYJSON_READ_NUMBER_AS_RAW; plus YYJSON_READ_ALLOW_INVALID_UNICODE when is_lenient) within
// the limits below, for any split of the input. One deliberate difference: yyjson refuses lone
// surrogate escapes ("\ud83d") even with ALLOW_INVALID_UNICODE, the lenient mode lets them pass,
// because upstreams cut pairs in two between deltas.
//
//     static const char *const PATHS[] = {"model", "stream", "stream_options.include_usage"};
//     struct skim skim;
//     skim_init(&skim, &(struct skim_spec){.paths = PATHS, .path_count = 3});
//     while (more) err = skim_feed(&skim, chunk);
//     err = skim_finish(&skim);
//     skim.spans[0]                       // of "model"
//
// A path is dot-separated object members; a component of digits is an array index
// ("choices.0.delta"). Member names are compared after unescaping. One thread at a time; no
// allocation at all.
//
// Of a member that occurs twice the last occurrence counts, whole: what lay below the earlier one
// is forgotten. The flags is_duplicate and has_case_twin of a path speak of each of its components
// ("stream_options" twice flags "stream_options.include_usage" too) and has_case_twin is also set
// when only the twin is there (type SKIM_ABSENT).
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

#define SKIM_MAX_PATHS 32
#define SKIM_MAX_DEPTH 64
#define SKIM_MAX_NODES 128     // distinct path prefixes in a spec
#define SKIM_MAX_NAME 127      // bytes of one component
#define SKIM_NO_KEY UINT64_MAX // key_start of an array's element

enum skim_type {
    SKIM_ABSENT,
    SKIM_NULL,
    SKIM_FALSE,
    SKIM_TRUE,
    SKIM_NUMBER,
    SKIM_STRING,
    SKIM_ARRAY,
    SKIM_OBJECT,
};

struct skim_span {
    enum skim_type type;
    bool has_escapes;     // a string with a backslash in it
    bool is_duplicate;    // the member occurs twice in its object (the last one's place is kept)
    bool has_case_twin;   // another member differs from it in ASCII case only
    uint64_t key_start;   // offset of the member name's opening quote; SKIM_NO_KEY: array element
    uint64_t start, end;  // the value's bytes [start, end), quotes and brackets included
    uint32_t child_count; // of an array or object: its direct elements or members
};

// The tree of a spec's paths; constant once it is made.
struct skim_node {
    const char *name;
    uint32_t index; // as an array index
    uint32_t paths; // bit per declared path that ends here
    uint32_t below; // bit per declared path that ends here or further down
    uint8_t len;
    uint8_t first_child, next;
};

struct skim_plan {
    struct skim_node nodes[SKIM_MAX_NODES];
    uint8_t node_count;
};

struct skim_spec {
    const char *const *paths; // kept
    size_t path_count;        // ≤ SKIM_MAX_PATHS
    // NULL: the paths are constants of the program; their tree is made once per process, found by
    // the array's address, and shared. Else room for the tree of paths made at run time: filled by
    // skim_init, kept as long as the scanner.
    struct skim_plan *plan;
    uint32_t max_depth;   // 0 = SKIM_MAX_DEPTH
    uint32_t max_members; // object members in all; 0 = 100,000
    bool is_lenient;      // lone surrogate escapes, invalid UTF-8 and control bytes in strings
                          // pass (upstream events)
};

struct skim {
    struct skim_span spans[SKIM_MAX_PATHS];
    enum skim_type root_type;
    uint64_t root_start, root_end; // offsets of the root value
    uint64_t offset;               // bytes fed
    int err;                       // sticky: GW_EINVAL (grammar), GW_ETOOBIG (depth, members)
    uint64_t err_offset;
    const char *err_text; // constant, for the client's error message
    // The rest is skim.c's.
    size_t path_count;
    uint64_t opaque[80];
};

// More paths, components or longer names than the limits above are our mistake (gw_require), as are
// more than SKIM_MAX_PLANS constant specs.
#define SKIM_MAX_PLANS 64
void skim_init(struct skim *skim, const struct skim_spec *spec);
GW_MUSTCHECK int skim_feed(struct skim *skim, struct slice bytes);
GW_MUSTCHECK int skim_finish(struct skim *skim);
// All of the above for a whole text.
GW_MUSTCHECK int skim_whole(struct skim *skim, const struct skim_spec *spec, struct slice text);

// Decodes a string span (text = the whole JSON text) into out; GW_ETOOBIG when it does not fit.
// Lone surrogates become U+FFFD. *len gets the length. A NUL follows when there is room for it.
GW_MUSTCHECK int skim_string(struct slice text, const struct skim_span *span, char *out,
                             size_t size, size_t *len);
// Reads a non-negative integer ("12", "12.0", "1.2e1" are 12). GW_EINVAL: not a number or not a
// whole one or negative; GW_ETOOBIG: above UINT64_MAX.
GW_MUSTCHECK int skim_u64(struct slice text, const struct skim_span *span, uint64_t *out);
static inline struct slice skim_bytes(struct slice text, const struct skim_span *span)
{
    return slice_of(text.ptr + span->start, (size_t)(span->end - span->start));
}

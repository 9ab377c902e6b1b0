#pragma once
// The shape of an event: its JSON but for a few holes (a piece of text, a running number, padding).
// The deltas of one stream are alike to the byte except there, and JSON read from equal bytes is
// read equally: an event that fits the shape of one that was scanned whole needs no scan. Exact,
// no guess: what does not fit, byte for byte, is scanned. One thread at a time; no allocation.
#include "base/slice.h"
#include <stdint.h>

#define SHAPE_HOLES 3
#define SHAPE_BYTES 640 // of all fixed parts and the name; longer events have no shape

enum shape_kind {
    SHAPE_TEXT,   // the inside of a JSON string, never empty; escapes but \u are allowed
    SHAPE_PAD,    // the inside of a JSON string without escapes that says nothing
    SHAPE_NUMBER, // digits of a JSON integer, 0 or without a leading zero, at most 18
};

struct shape_hole {
    enum shape_kind kind;
    size_t start, end; // in the data
};

struct event_shape {
    bool is_known;
    uint8_t hole_count;
    uint16_t name_len;
    uint16_t fixed_len[SHAPE_HOLES + 1];
    enum shape_kind kinds[SHAPE_HOLES];
    char bytes[SHAPE_BYTES]; // the name, then the fixed parts
};

// Remembers the event; holes in order, not touching each other. Forgets the old shape also when the
// new one does not fit into it.
void shape_learn(struct event_shape *shape, struct slice name, struct slice data,
                 const struct shape_hole *holes, size_t count);
// What a fitting event has in its holes.
struct shape_match {
    struct shape_hole holes[SHAPE_HOLES];
    uint64_t text_bytes; // of the SHAPE_TEXT hole, escapes decoded
    uint64_t number;     // of the SHAPE_NUMBER hole
    bool has_escapes;
};
bool shape_fits(const struct event_shape *shape, struct slice name, struct slice data,
                struct shape_match *match);

#pragma once
// The neutral event stream: what a plugin answers with, what a delta hook sees, and (in the
// converters) what lies between two dialects. Pure data; slices are borrowed.
//
// Order: START; then blocks, each BLOCK_START (BLOCK_DELTA)* BLOCK_END, one open at a time, index
// 0,1,2…; USAGE at any time, the last one wins; then FINISH. ERROR ends the stream instead.
#include "base/slice.h"
#include "codec/usage.h"
#include <stdint.h>

enum event_kind {
    EVENT_START,       // id, model
    EVENT_BLOCK_START, // block, index, id and name for tools
    EVENT_BLOCK_DELTA, // block, index, text (text, thinking, or a piece of the arguments' JSON)
    EVENT_BLOCK_END,   // index
    EVENT_USAGE,       // usage
    EVENT_FINISH,      // finish, stop_sequence
    EVENT_ERROR,       // error
};

enum event_block { EVENT_BLOCK_TEXT, EVENT_BLOCK_THINKING, EVENT_BLOCK_TOOL, EVENT_BLOCK_REFUSAL };

enum event_finish {
    EVENT_FINISH_STOP,
    EVENT_FINISH_LENGTH,
    EVENT_FINISH_TOOL,
    EVENT_FINISH_FILTER,
    EVENT_FINISH_STOP_SEQUENCE,
};

struct event {
    enum event_kind kind;
    enum event_block block;
    enum event_finish finish;
    uint32_t index;
    struct slice id, name, model, text, stop_sequence;
    struct usage usage;
    const struct dialect_error *error;
};

#pragma once
// Reads the head of an answer line by line, strictly, and judges its framing: whatever two parsers
// could frame differently is GW_EPROTO, so that the connection is given up. 1xx heads are
// swallowed. Pure; memory is the caller's arena.
#include "base/arena.h"
#include "base/err.h"
#include "base/slice.h"
#include "io/http1.h"
#include <stdint.h>

struct fetch_head {
    int status;
    bool has_status; // the status line of the present head was read
    bool is_final;   // complete
    bool is_http10;
    bool is_chunked, has_length;
    uint64_t length;
    uint32_t informational_count;
    uint32_t byte_count, max_bytes; // over all heads and trailers
    struct http1_header *headers;   // names in lower case
    size_t count, capacity;
};

// RFC 9110's tchar: header names and methods.
static inline bool fetch_is_token_char(unsigned char c)
{
    static const uint32_t bits[8] = {0, 0x03ff6cfa, 0xc7fffffe, 0x57ffffff, 0, 0, 0, 0};
    return bits[c >> 5] >> (c & 31u) & 1u;
}

void fetch_head_init(struct fetch_head *head, uint32_t max_bytes);
// One line with its line end; an empty one ends a head. *why gets a constant text on an error.
GW_MUSTCHECK int fetch_head_line(struct fetch_head *head, struct arena *arena, struct slice line,
                                 const char **why);

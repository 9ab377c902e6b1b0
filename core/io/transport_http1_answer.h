#pragma once
// Reads one HTTP/1.1 answer from bytes as they come, without a socket: llhttp with its lenient
// flags off says where things end, and stands beside our own reading of the head (fetch_head.h),
// which gets every line. What either of them refuses is refused. The body's bytes are given in
// place: payloads of the chunks of one read are moved together, so that they are one piece. Private
// to transport_http1*.c and its fuzz target. Worker thread only.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include <llhttp.h>
#include <stdint.h>

enum h1_answer_state {
    H1_ANSWER_HEAD, // also while 1xx heads come
    H1_ANSWER_BODY,
    H1_ANSWER_DONE,
    H1_ANSWER_FAILED, // err and why say how
};

struct h1_answer {
    llhttp_t llhttp;
    // One line with its line end, complete; the empty one ends a head. Not 0: the answer fails.
    int (*on_line)(void *user, struct slice line);
    void *user;
    struct buf carry; // the beginning of a head's line that is not yet complete
    char *span;       // payload of the bytes at hand
    size_t span_len;
    const char *feed;
    uint64_t fed, body_bytes; // since the head's end
    uint32_t extension_bytes, extension_total, trailer_bytes, max_bytes;
    enum h1_answer_state state;
    bool is_head_request, is_until_close, may_keep;
    bool has_said_close; // in any of its heads
    int err;
    const char *why; // NULL: on_line has said it
};

// Heads and trailers longer than max_bytes are refused.
void h1_answer_start(struct h1_answer *answer, bool is_head_request, uint32_t max_bytes,
                     int (*on_line)(void *user, struct slice line), void *user);
void h1_answer_free(struct h1_answer *answer);
// Reads bytes, which it moves about; gives those of the body. Then look at state. A body that comes
// with a failure was right up to there.
struct slice h1_answer_feed(struct h1_answer *answer, char *bytes, size_t len);
void h1_answer_end(struct h1_answer *answer); // the connection ended

#pragma once
// Reads HTTP/1.1 messages piece by piece, for the bench tools on both ends. Holds memory only while
// a head is incomplete. One thread. It trusts its peers to be well-formed in what it does not look
// at: it measures, it does not guard.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_HEAD_MAX (128u << 10)

struct span {
    const char *ptr;
    size_t len;
};

enum http_event {
    HTTP_MORE, // all input is consumed
    HTTP_HEAD, // out: the whole head with its empty line, valid until the next call
    HTTP_BODY, // out: bytes of the body, without framing
    HTTP_END,  // the message is whole; the next call begins another
    HTTP_BAD,
};

struct http_in {
    char *held; // begin of a head
    uint32_t held_len;
    uint16_t status; // of an answer
    uint8_t state;
    bool is_answer, is_chunked, until_close, is_last; // is_last: "connection: close"
    uint64_t left;                                    // of the body, of the chunk
};

void http_in_init(struct http_in *in, bool is_answer);
void http_in_free(struct http_in *in);
// Takes from input (moved on), gives one event.
enum http_event http_in_next(struct http_in *in, struct span *input, struct span *out);
// The peer closed: true when that is this message's proper end, or nothing had begun.
bool http_in_closed(const struct http_in *in, bool *is_end);
// Value of a header line of a head (name in lower case); len 0: absent.
struct span http_header(struct span head, const char *name);

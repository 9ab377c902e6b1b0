#pragma once
// Incremental parser of server-sent events (WHATWG HTML §9.2.6). The same events come out for any
// split of the input. Line ends LF, CRLF and CR; a leading BOM is skipped; comments and unknown
// fields are ignored. An event's name and data lie in the parser's buffer or, when the event came
// whole in one feed, in the fed bytes: valid during the callback only.
//
// Comments, blank lines and a BOM between events belong to none of them: an event starts with its
// first line that is no comment. Where lines end with CRLF the blank line's LF belongs to the
// event, which ends when that LF is there; where lines end with bare CR the event ends at the
// second CR.
//
// The relay forwards bytes itself; the parser tells it where events end (stream offsets), so that
// keep-alive comments go out only at borders and single events can be held or replaced.
// One thread at a time.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"

#define SSE_MAX_EVENT (16u << 20)

struct sse_event {
    struct slice name;   // "event:" field; empty when absent
    struct slice data;   // data lines joined by \n
    bool has_data;       // a data field was there (may be empty)
    uint64_t start, end; // offsets in the stream of its first byte and past its blank line
};
// Returns 0 or a GW_E… that stops sse_feed and is returned by it.
typedef int (*sse_event_cb)(void *user, const struct sse_event *event);

struct sse {
    struct buf partial;   // bytes of an incomplete event
    struct buf joined;    // data of an event with several data lines
    uint64_t offset;      // bytes fed
    uint64_t event_start; // of the event in progress (of the comment line when not in an event)
    size_t max_event;
    // The rest is sse.c's.
    int err;          // sticky
    uint8_t bom;      // bytes of the BOM seen; 3: decided
    uint8_t last_end; // how the last line ended
    bool in_event;    // a line that is no comment has begun
    bool in_line;     // a line has begun and not ended
    bool has_cr;      // the event in progress has a CR
    bool may_skip_lf; // a line ended with CR: an LF belongs to it
    bool may_end_lf;  // a blank line ended with CR: an LF still belongs to the event
};

void sse_init(struct sse *sse, size_t max_event); // 0 = SSE_MAX_EVENT
void sse_free(struct sse *sse);
// Calls on_event for each event that ends in these bytes, also for those without a data field.
// GW_ETOOBIG: an event above the limit (sticky). When on_event stops it, the bytes up to that
// event's end are taken and no more; feeding the rest goes on behind it.
GW_MUSTCHECK int sse_feed(struct sse *sse, struct slice bytes, sse_event_cb on_event, void *user);
// At the end of the stream: delivers an event that lacks its blank line (SDKs do so).
GW_MUSTCHECK int sse_finish(struct sse *sse, sse_event_cb on_event, void *user);
// True when the next byte would begin a new event (nothing of one was fed, comments apart).
bool sse_is_at_border(const struct sse *sse);
// Bytes fed since the last border.
uint64_t sse_pending(const struct sse *sse);

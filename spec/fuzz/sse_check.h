#pragma once
// Compares the SSE parser with a plain one that sees the whole text at once, and with itself for
// several splits. Used by the unit test and by the fuzz target. Any thread.
#include "codec/sse.h"
#include <stdio.h>
#include <stdlib.h>

// Events as text, one line each: [start,end) has_data name|data
struct sse_check_log {
    struct buf text;
};

static inline void sse_check_write(struct buf *out, struct slice bytes)
{
    if (buf_append(out, bytes) != 0)
        abort();
}

static inline int sse_check_on_event(void *user, const struct sse_event *event)
{
    struct sse_check_log *log = user;
    char head[80];
    int len = snprintf(head, sizeof(head), "[%llu,%llu) %d ", (unsigned long long)event->start,
                       (unsigned long long)event->end, event->has_data);
    sse_check_write(&log->text, slice_of(head, (size_t)len));
    sse_check_write(&log->text, event->name);
    sse_check_write(&log->text, SLICE_LIT("|"));
    sse_check_write(&log->text, event->data);
    sse_check_write(&log->text, SLICE_LIT("\n"));
    return 0;
}

enum sse_check_end { SSE_CHECK_NONE, SSE_CHECK_LF, SSE_CHECK_CR, SSE_CHECK_CRLF };

// The plain parser: lines first, then their meaning.
static inline void sse_check_plain(const char *text, size_t len, struct sse_check_log *log)
{
    size_t at = len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    struct sse_event event = {0};
    struct buf data = BUF_INIT(0);
    bool is_open = false;
    enum sse_check_end last_end = SSE_CHECK_NONE;
    while (at < len) {
        size_t start = at;
        while (at < len && text[at] != '\n' && text[at] != '\r')
            at++;
        struct slice line = slice_of(text + start, at - start);
        enum sse_check_end end = SSE_CHECK_NONE;
        size_t line_end = at; // past its end, and past its bare CR
        if (at < len) {
            end = text[at] == '\n' ? SSE_CHECK_LF : SSE_CHECK_CR;
            line_end = ++at;
            if (end == SSE_CHECK_CR && at < len && text[at] == '\n') {
                end = SSE_CHECK_CRLF;
                at++;
            }
        }
        if (line.len == 0) {
            if (is_open) {
                // After a line with a bare CR a CR alone is the blank line, whatever follows.
                event.end = last_end == SSE_CHECK_CR ? line_end : at;
                event.data = buf_slice(&data);
                sse_check_on_event(log, &event);
            }
            buf_clear(&data);
            event = (struct sse_event){0};
            is_open = false;
            last_end = SSE_CHECK_NONE;
            continue;
        }
        if (!is_open && line.ptr[0] == ':')
            continue;
        if (!is_open)
            event.start = start;
        is_open = true;
        last_end = end;
        const char *colon = memchr(line.ptr, ':', line.len);
        struct slice name = colon ? slice_of(line.ptr, (size_t)(colon - line.ptr)) : line;
        struct slice value = colon ? slice_from(line, name.len + 1) : slice_of("", 0);
        if (slice_starts(value, " "))
            value = slice_from(value, 1);
        if (slice_is(name, "data")) {
            if (event.has_data)
                sse_check_write(&data, SLICE_LIT("\n"));
            sse_check_write(&data, value);
            event.has_data = true;
        } else if (slice_is(name, "event")) {
            event.name = value;
        }
    }
    if (is_open) {
        event.end = len;
        event.data = buf_slice(&data);
        sse_check_on_event(log, &event);
    }
    buf_free(&data);
}

// Feeds the text in pieces (each an exact copy, so that a sanitizer sees reads beyond it).
static inline int sse_check_feed(const char *text, size_t len, size_t first, size_t step,
                                 struct sse_check_log *log)
{
    struct sse sse;
    sse_init(&sse, 0);
    size_t at = 0;
    int err = 0;
    while (!err && at < len) {
        size_t piece = at == 0 && first ? first : step;
        if (piece > len - at)
            piece = len - at;
        char *copy = malloc(piece);
        memcpy(copy, text + at, piece);
        err = sse_feed(&sse, slice_of(copy, piece), sse_check_on_event, log);
        free(copy);
        at += piece;
        if (sse.offset != at || sse_pending(&sse) > at ||
            (sse_is_at_border(&sse) && sse_pending(&sse) != 0))
            abort();
    }
    if (!err)
        err = sse_finish(&sse, sse_check_on_event, log);
    sse_free(&sse);
    return err;
}

static inline bool sse_check_split(const char *text, size_t len, size_t first, size_t step,
                                   const struct sse_check_log *want)
{
    struct sse_check_log log = {BUF_INIT(0)};
    int err = sse_check_feed(text, len, first, step, &log);
    bool is_same = !err && slice_eq(buf_slice(&log.text), buf_slice(&want->text));
    buf_free(&log.text);
    return is_same;
}

// Border flags and pending counts after each byte must not depend on how the bytes came.
static inline bool sse_check_borders(const char *text, size_t len)
{
    struct sse bytewise;
    struct sse_check_log log = {BUF_INIT(0)};
    bool is_same = true;
    sse_init(&bytewise, 0);
    for (size_t i = 0; is_same && i < len; i++) {
        struct sse whole;
        sse_init(&whole, 0);
        is_same = sse_feed(&bytewise, slice_of(text + i, 1), sse_check_on_event, &log) == 0 &&
                  sse_feed(&whole, slice_of(text, i + 1), sse_check_on_event, &log) == 0 &&
                  sse_is_at_border(&whole) == sse_is_at_border(&bytewise) &&
                  sse_pending(&whole) == sse_pending(&bytewise);
        sse_free(&whole);
    }
    sse_free(&bytewise);
    buf_free(&log.text);
    return is_same;
}

// All checks of one text. Gives NULL or what is wrong.
static inline const char *sse_check(const char *text, size_t len, bool all_splits, size_t seed)
{
    struct sse_check_log want = {BUF_INIT(0)};
    sse_check_plain(text, len, &want);
    const char *wrong = NULL;
    if (!sse_check_split(text, len, 0, len ? len : 1, &want))
        wrong = "differs from the plain parser";
    if (!wrong && !sse_check_split(text, len, 0, 1, &want))
        wrong = "differs byte by byte";
    if (!wrong && len && !sse_check_split(text, len, seed % len, 1 + seed / 7 % 50, &want))
        wrong = "differs for a split";
    for (size_t i = 1; all_splits && !wrong && i < len; i++)
        if (!sse_check_split(text, len, i, len, &want))
            wrong = "differs for a 2-way split";
    if (!wrong && all_splits && !sse_check_borders(text, len))
        wrong = "a split moves the borders";
    buf_free(&want.text);
    return wrong;
}

// Two passes: sse_feed only looks for the blank line that ends an event (memchr over its lines); a
// whole event, which lies in one run of bytes either in the fed bytes or in `partial`, is then
// split into its fields. Nothing is looked at twice when an event comes in many pieces.
#include "codec/sse.h"
#include <string.h>

enum line_end { LINE_END_LF, LINE_END_CR, LINE_END_CRLF };

static const char BOM[3] = {'\xef', '\xbb', '\xbf'};
#define BOM_DECIDED 3
#define KEEP_MEMORY (64u << 10) // buffers above this are given back after their event

void sse_init(struct sse *sse, size_t max_event)
{
    memset(sse, 0, sizeof(*sse));
    sse->max_event = max_event ? max_event : SSE_MAX_EVENT;
    buf_init(&sse->partial, 0);
    buf_init(&sse->joined, 0);
}

void sse_free(struct sse *sse)
{
    buf_free(&sse->partial);
    buf_free(&sse->joined);
}

bool sse_is_at_border(const struct sse *sse)
{
    return !sse->in_event && !sse->in_line && (sse->bom == 0 || sse->bom == BOM_DECIDED);
}

uint64_t sse_pending(const struct sse *sse)
{
    return sse_is_at_border(sse) ? 0 : sse->offset - sse->event_start;
}

static bool is_field(struct slice line, const char *name, size_t len, struct slice *value)
{
    if (line.len < len || memcmp(line.ptr, name, len) != 0)
        return false;
    if (line.len == len) {
        *value = slice_of(line.ptr + len, 0);
        return true;
    }
    if (line.ptr[len] != ':')
        return false;
    size_t at = len + 1;
    if (at < line.len && line.ptr[at] == ' ')
        at++;
    *value = slice_of(line.ptr + at, line.len - at);
    return true;
}

static int fail(struct sse *sse, int err)
{
    sse->err = err;
    return err;
}

// Splits a whole event into its fields.
static int parse(struct sse *sse, struct slice bytes, struct sse_event *event)
{
    const char *p = bytes.ptr, *end = p + bytes.len;
    size_t data_lines = 0;
    while (p < end) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        if (!eol)
            eol = end;
        if (sse->has_cr) {
            const char *cr = memchr(p, '\r', (size_t)(eol - p));
            if (cr)
                eol = cr;
        }
        struct slice line = slice_of(p, (size_t)(eol - p)), value;
        p = eol < end ? eol + 1 : end;
        if (is_field(line, "data", 4, &value)) {
            event->has_data = true;
            if (++data_lines == 1) {
                event->data = value;
                continue;
            }
            if (data_lines == 2) {
                buf_clear(&sse->joined);
                int err = buf_append(&sse->joined, event->data);
                if (err)
                    return err;
            }
            int err = buf_append_char(&sse->joined, '\n');
            if (!err)
                err = buf_append(&sse->joined, value);
            if (err)
                return err;
        } else if (is_field(line, "event", 5, &value)) {
            event->name = value;
        }
    }
    if (data_lines > 1)
        event->data = buf_slice(&sse->joined);
    return 0;
}

// Empties a buffer; a large one gives its memory back, it was for one large event.
static void drop(struct buf *buf)
{
    if (buf->capacity > KEEP_MEMORY)
        buf_free(buf);
    else if (buf->len)
        buf_clear(buf);
}

// The event in progress is complete; [from, to) is what of it is not in `partial`.
static int deliver(struct sse *sse, const char *from, const char *to, sse_event_cb on_event,
                   void *user)
{
    struct slice bytes = slice_of(from, (size_t)(to - from));
    if (bytes.len + sse->partial.len > sse->max_event)
        return fail(sse, GW_ETOOBIG);
    if (sse->partial.len) {
        int err = buf_append(&sse->partial, bytes);
        if (err)
            return fail(sse, err);
        bytes = buf_slice(&sse->partial);
    }
    struct sse_event event = {.start = sse->event_start, .end = sse->event_start + bytes.len};
    int err = parse(sse, bytes, &event);
    if (err)
        return fail(sse, err);
    sse->in_event = sse->in_line = sse->has_cr = sse->may_end_lf = false;
    sse->offset = sse->event_start = event.end;
    err = on_event(user, &event);
    drop(&sse->partial);
    drop(&sse->joined);
    return err;
}

// The event that nearly all are, whole in the fed bytes: one data line and its blank line, both
// ended by LF. Gives its end, or NULL when it is another.
static const char *plain_event(const char *p, const char *end, struct slice *data)
{
    if (end - p < 7 || memcmp(p, "data:", 5) != 0)
        return NULL;
    p += 5;
    const char *eol = memchr(p, '\n', (size_t)(end - p));
    if (!eol || end - eol < 2 || eol[1] != '\n')
        return NULL;
    p += *p == ' ';
    *data = slice_of(p, (size_t)(eol - p));
    return eol + 2;
}

static int deliver_plain(struct sse *sse, uint64_t start, size_t len, struct slice data,
                         sse_event_cb on_event, void *user)
{
    if (len > sse->max_event)
        return fail(sse, GW_ETOOBIG);
    struct sse_event event = {.data = data, .has_data = true, .start = start, .end = start + len};
    sse->last_end = LINE_END_LF;
    sse->offset = sse->event_start = event.end;
    return on_event(user, &event);
}

// Takes the bytes that are, or may yet be, a leading BOM.
static int take_bom(struct sse *sse, const char **at, const char *end)
{
    const char *p = *at;
    while (p < end && sse->bom < BOM_DECIDED && *p == BOM[sse->bom]) {
        p++;
        sse->bom++;
    }
    if (sse->bom == BOM_DECIDED) {
        sse->event_start = BOM_DECIDED;
    } else if (p < end) {
        size_t seen = sse->bom;
        sse->bom = BOM_DECIDED;
        if (seen) {
            // It was the beginning of a line after all.
            sse->in_event = sse->in_line = true;
            int err = buf_append(&sse->partial, slice_of(BOM, seen));
            if (err)
                return fail(sse, err);
        }
    }
    *at = p;
    return 0;
}

int sse_feed(struct sse *sse, struct slice bytes, sse_event_cb on_event, void *user)
{
    if (sse->err || bytes.len == 0)
        return sse->err;
    const uint64_t base = sse->offset;
    const char *p = bytes.ptr, *end = p + bytes.len;
    if (sse->bom < BOM_DECIDED) {
        int bom_err = take_bom(sse, &p, end);
        if (bom_err)
            return bom_err;
    }
    const char *from = p; // what of the event in progress is not in `partial` begins here
    const char *next_cr = memchr(p, '\r', (size_t)(end - p)); // at or behind p; NULL: none
    int err = 0;
    while (p < end) {
        if (sse->may_skip_lf) {
            sse->may_skip_lf = false;
            if (*p == '\n') {
                sse->last_end = LINE_END_CRLF;
                p++;
                continue;
            }
        }
        if (sse->may_end_lf) {
            p += *p == '\n';
            err = deliver(sse, from, p, on_event, user);
            if (err)
                return err;
            continue;
        }
        struct slice data;
        const char *past =
            sse->in_event || sse->in_line || next_cr ? NULL : plain_event(p, end, &data);
        if (past) {
            err = deliver_plain(sse, base + (uint64_t)(p - bytes.ptr), (size_t)(past - p), data,
                                on_event, user);
            if (err)
                return err;
            p = past;
            continue;
        }
        if (!sse->in_line) {
            if (*p == '\n' || *p == '\r') {
                bool is_cr = *p++ == '\r';
                if (!sse->in_event) {
                    sse->may_skip_lf = is_cr;
                    continue;
                }
                if (is_cr && sse->last_end != LINE_END_CR) {
                    // The other lines suggest that an LF comes; the event ends with it.
                    sse->may_end_lf = true;
                    sse->has_cr = true;
                    continue;
                }
                // Before the call: it is on the far side of the event's end.
                sse->may_skip_lf = is_cr;
                err = deliver(sse, from, p, on_event, user);
                if (err)
                    return err;
                continue;
            }
            sse->in_line = true;
            if (!sse->in_event) {
                sse->event_start = base + (uint64_t)(p - bytes.ptr);
                sse->in_event = *p != ':';
                from = p;
            }
        }
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        if (next_cr && next_cr < p)
            next_cr = memchr(p, '\r', (size_t)(end - p));
        bool is_cr = next_cr && (!eol || next_cr < eol);
        if (is_cr)
            eol = next_cr;
        if (!eol) {
            p = end;
            break;
        }
        p = eol + 1;
        sse->in_line = false;
        sse->may_skip_lf = is_cr;
        sse->has_cr |= is_cr;
        sse->last_end = is_cr ? LINE_END_CR : LINE_END_LF;
    }
    sse->offset = base + bytes.len;
    if (!sse->in_event) {
        sse->has_cr = false;
        return 0;
    }
    size_t rest = (size_t)(end - from);
    if (rest + sse->partial.len > sse->max_event)
        return fail(sse, GW_ETOOBIG);
    if (rest)
        err = buf_append(&sse->partial, slice_of(from, rest));
    return err ? fail(sse, err) : 0;
}

int sse_finish(struct sse *sse, sse_event_cb on_event, void *user)
{
    if (sse->err)
        return sse->err;
    if (sse->bom > 0 && sse->bom < BOM_DECIDED) {
        int err = buf_append(&sse->partial, slice_of(BOM, sse->bom));
        if (err)
            return fail(sse, err);
        sse->in_event = true;
    }
    sse->bom = BOM_DECIDED;
    sse->in_line = false;
    return sse->in_event ? deliver(sse, "", "", on_event, user) : 0;
}

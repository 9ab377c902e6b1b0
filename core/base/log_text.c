// The text of log lines: one JSON object per line, whatever bytes the values hold.
#include "base/clock.h"
#include "base/log_parts.h"
#include <stdio.h>

// Length of the valid UTF-8 sequence at the start of text, with its code point; or 0 and in *skip
// the bytes of the maximal invalid part (Unicode 15, table 3-7).
static size_t utf8_length(struct slice text, uint32_t *code, size_t *skip)
{
    const unsigned char *p = (const unsigned char *)text.ptr;
    unsigned char low = 0x80, high = 0xbf;
    size_t need;
    *skip = 1;
    if (p[0] < 0x80) {
        *code = p[0];
        return 1;
    } else if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        need = 2;
        *code = p[0] & 0x1fu;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        need = 3;
        *code = p[0] & 0x0fu;
        low = p[0] == 0xe0 ? 0xa0 : low;
        high = p[0] == 0xed ? 0x9f : high;
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        need = 4;
        *code = p[0] & 0x07u;
        low = p[0] == 0xf0 ? 0x90 : low;
        high = p[0] == 0xf4 ? 0x8f : high;
    } else {
        return 0;
    }
    for (size_t i = 1; i < need; i++) {
        if (i >= text.len || p[i] < low || p[i] > high) {
            *skip = i;
            return 0;
        }
        *code = *code << 6 | (p[i] & 0x3fu);
        low = 0x80;
        high = 0xbf;
    }
    return need;
}

static bool is_plain(unsigned char byte)
{
    return byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\';
}

static int escape_code(struct buf *out, uint32_t code)
{
    switch (code) {
    case '"': return buf_append_str(out, "\\\"");
    case '\\': return buf_append_str(out, "\\\\");
    case '\n': return buf_append_str(out, "\\n");
    case '\r': return buf_append_str(out, "\\r");
    case '\t': return buf_append_str(out, "\\t");
    default: break;
    }
    char text[8];
    int len = snprintf(text, sizeof(text), "\\u%04x", (unsigned)(code & 0xffff));
    return buf_append(out, slice_of(text, (size_t)len));
}

int log_escape(struct buf *out, struct slice text)
{
    int err = 0;
    while (text.len > 0 && !err) {
        size_t run = 0;
        while (run < text.len && is_plain((unsigned char)text.ptr[run]))
            run++;
        if (run) {
            err = buf_append(out, slice_of(text.ptr, run));
            text = slice_from(text, run);
            continue;
        }
        uint32_t code = 0;
        size_t skip, len = utf8_length(text, &code, &skip);
        if (len == 0) {
            err = buf_append_str(out, "\\ufffd");
            text = slice_from(text, skip);
        } else {
            // Line separators are escaped because some viewers break lines there.
            bool is_raw = code >= 0xa0 && code != 0x2028 && code != 0x2029;
            err = is_raw ? buf_append(out, slice_of(text.ptr, len)) : escape_code(out, code);
            text = slice_from(text, len);
        }
    }
    return err;
}

static int append_string(struct buf *out, struct slice text)
{
    int err = buf_append_char(out, '"');
    if (!err)
        err = log_escape(out, text);
    return err ? err : buf_append_char(out, '"');
}

// JSON holds control bytes only as white space, which would break the line.
static int append_flat(struct buf *out, struct slice json)
{
    int err = buf_append(out, json);
    if (err)
        return err;
    const uint64_t ones = UINT64_C(0x0101010101010101), tops = ones << 7;
    char *text = out->mem + out->off + out->len - json.len;
    for (size_t i = 0; i < json.len; i++) {
        uint64_t v;
        // Eight bytes without a control byte among them: the usual case.
        for (; json.len - i >= sizeof v; i += sizeof v) {
            memcpy(&v, text + i, sizeof v);
            if ((v - ones * 0x20) & ~v & tops)
                break;
        }
        if (i < json.len && (unsigned char)text[i] < 0x20)
            text[i] = ' ';
    }
    return 0;
}

static int append_field(struct buf *out, const struct log_field *field)
{
    int err = buf_append_char(out, ',');
    if (!err)
        err = append_string(out, slice_str(field->name));
    if (!err)
        err = buf_append_char(out, ':');
    if (err)
        return err;
    switch (field->kind) {
    case LOG_KIND_INT: return buf_append_i64(out, field->number);
    case LOG_KIND_BOOL: return buf_append_str(out, field->number ? "true" : "false");
    case LOG_KIND_TEXT:
        return field->text.ptr ? append_string(out, field->text) : buf_append_str(out, "null");
    case LOG_KIND_RAW:
        return field->text.len ? append_flat(out, field->text) : buf_append_str(out, "null");
    default: return buf_append_str(out, "null");
    }
}

int log_format_event(struct buf *out, enum log_level level, const char *event,
                     const struct log_field *fields)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char ts[32];
    bool is_cut = false;
    clock_format_iso(clock_wall_ms(), ts, sizeof(ts));
    out->cap = out->len + LOG_EVENT_MAX - 64;
    int err = buf_printf(out, "{\"ts\":\"%s\",\"level\":\"%s\",\"event\":", ts,
                         level >= LOG_DEBUG && level <= LOG_ERROR ? names[level] : "error");
    if (!err)
        err = append_string(out, slice_str(event));
    for (; !err && fields && fields->kind != LOG_KIND_END; fields++) {
        // A field is left out whole: half a value could be half a secret.
        size_t before = out->len;
        err = append_field(out, fields);
        if (err == GW_ETOOBIG) {
            buf_truncate(out, before);
            is_cut = true;
            err = 0;
        }
    }
    out->cap = out->len + 64;
    if (!err)
        err = buf_append_str(out, is_cut ? ",\"truncated\":true}\n" : "}\n");
    return err;
}

int log_format_line(struct buf *out, struct slice json)
{
    if (json.len > LOG_LINE_MAX)
        return GW_ETOOBIG;
    out->cap = out->len + json.len + 1;
    int err = append_flat(out, json);
    return err ? err : buf_append_char(out, '\n');
}

// What the dialects share: the table, readers' and writers' beginnings, strings out of JSON, and
// the order of events that writers keep.
#include "codec/dialect.h"

static const struct dialect *const DIALECTS[] = {&dialect_openai, &dialect_responses,
                                                 &dialect_anthropic};

const struct dialect *dialect_get(enum dialect_id id)
{
    for (size_t i = 0; i < sizeof(DIALECTS) / sizeof(DIALECTS[0]); i++)
        if (DIALECTS[i]->id == id)
            return DIALECTS[i];
    return NULL;
}

const struct dialect *dialect_by_name(struct slice name)
{
    for (size_t i = 0; i < sizeof(DIALECTS) / sizeof(DIALECTS[0]); i++)
        if (slice_is(name, DIALECTS[i]->name))
            return DIALECTS[i];
    return NULL;
}

void dialect_reader_init(struct dialect_reader *reader, enum dialect_id id, enum dialect_op op)
{
    memset(reader, 0, sizeof(*reader));
    reader->dialect = dialect_get(id);
    gw_require(reader->dialect != NULL);
    reader->op = op;
    usage_meter_init(&reader->meter, reader->dialect->usage_rule);
}

void dialect_writer_init(struct dialect_writer *writer, enum dialect_id id, enum dialect_op op,
                         struct arena *arena)
{
    memset(writer, 0, sizeof(*writer));
    writer->dialect = dialect_get(id);
    gw_require(writer->dialect != NULL);
    writer->op = op;
    writer->arena = arena;
    buf_init(&writer->items, 0);
    buf_init(&writer->text, 0);
}

void dialect_writer_free(struct dialect_writer *writer)
{
    buf_free(&writer->items);
    buf_free(&writer->text);
}

bool dialect_scan(struct skim *skim, const struct skim_spec *spec, struct slice data)
{
    return skim_whole(skim, spec, data) == 0 && skim->root_type == SKIM_OBJECT;
}

void dialect_note_pad(const struct skim_span *span, struct dialect_info *info)
{
    if (span->type != SKIM_STRING)
        return;
    info->pad_start = (size_t)span->start;
    info->pad_end = (size_t)span->end;
}

static void learn(struct dialect_reader *reader, const struct sse_event *event,
                  const struct dialect_info *info, uint64_t text_bytes)
{
    struct shape_hole holes[SHAPE_HOLES];
    size_t count = 0;
    if (info->number_end > info->number_start)
        holes[count++] = (struct shape_hole){SHAPE_NUMBER, info->number_start, info->number_end};
    holes[count++] = (struct shape_hole){SHAPE_TEXT, info->text_start + 1, info->text_end - 1};
    if (info->pad_end > info->pad_start)
        holes[count++] = (struct shape_hole){SHAPE_PAD, info->pad_start + 1, info->pad_end - 1};
    for (size_t i = 1; i < count; i++) { // by place: at most three
        struct shape_hole hole = holes[i];
        size_t at = i;
        for (; at > 0 && holes[at - 1].start > hole.start; at--)
            holes[at] = holes[at - 1];
        holes[at] = hole;
    }
    struct skim_span span = {.type = SKIM_STRING,
                             .has_escapes = info->text_has_escapes,
                             .start = info->text_start,
                             .end = info->text_end};
    reader->plain = *info;
    reader->plain_rest = text_bytes - dialect_text_bytes(event->data, &span);
    shape_learn(&reader->shape, event->name, event->data, holes, count);
}

void dialect_inspect(struct dialect_reader *reader, const struct sse_event *event,
                     struct dialect_info *info)
{
    struct shape_match match;
    if (!event->has_data || reader->has_end ||
        !shape_fits(&reader->shape, event->name, event->data, &match)) {
        uint64_t before = reader->text_bytes;
        reader->dialect->inspect(reader, event, info);
        if (info->is_plain && info->has_text)
            learn(reader, event, info, reader->text_bytes - before);
        return;
    }
    *info = reader->plain;
    for (size_t i = 0; i < reader->shape.hole_count; i++) {
        const struct shape_hole *hole = &match.holes[i];
        if (hole->kind == SHAPE_TEXT) {
            info->text_start = hole->start - 1;
            info->text_end = hole->end + 1;
        } else if (hole->kind == SHAPE_PAD) {
            info->pad_start = hole->start - 1;
            info->pad_end = hole->end + 1;
        } else {
            info->number_start = hole->start;
            info->number_end = hole->end;
            reader->sequence = match.number;
        }
    }
    info->text_has_escapes = match.has_escapes;
    reader->text_bytes += reader->plain_rest + match.text_bytes;
    reader->has_content = true;
}

// ---- strings ----

static int hex4(const char *at, const char *end)
{
    int value = 0;
    if (end - at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = at[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

static size_t utf8_encode(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}

// Decodes one escape at the backslash *at; gives the encoded length.
static size_t decode_escape(const char **at, const char *end, char *out)
{
    const char *p = *at + 1;
    if (p >= end) {
        *at = end;
        return 0;
    }
    char c = *p++;
    *at = p;
    switch (c) {
    case 'n': *out = '\n'; return 1;
    case 't': *out = '\t'; return 1;
    case 'r': *out = '\r'; return 1;
    case 'b': *out = '\b'; return 1;
    case 'f': *out = '\f'; return 1;
    case 'u': break;
    default: *out = c; return 1;
    }
    int code = hex4(p, end);
    if (code < 0)
        return 0;
    p += 4;
    *at = p;
    if (code >= 0xD800 && code <= 0xDBFF && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
        int low = hex4(p + 2, end);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            *at = p + 6;
            return utf8_encode(
                0x10000 + ((uint32_t)(code - 0xD800) << 10) + (uint32_t)(low - 0xDC00), out);
        }
    }
    return utf8_encode(code >= 0xD800 && code <= 0xDFFF ? 0xFFFD : (uint32_t)code, out);
}

// The longest len' ≤ len that does not cut a character of the text.
size_t dialect_cut(const char *text, size_t len)
{
    size_t at = len;
    while (at > 0 && len - at < 4 && ((unsigned char)text[at - 1] & 0xC0) == 0x80)
        at--;
    if (at == 0)
        return len;
    unsigned char lead = (unsigned char)text[at - 1];
    size_t need = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    return at - 1 + need > len ? at - 1 : len;
}

size_t dialect_decode(struct slice inside, char *out, size_t size)
{
    const char *at = inside.ptr, *end = inside.ptr + inside.len;
    size_t len = 0;
    while (at < end) {
        char piece[4];
        size_t piece_len = 1;
        if (*at == '\\') {
            piece_len = decode_escape(&at, end, piece);
        } else {
            piece[0] = *at++;
        }
        if (len + piece_len >= size) {
            len = dialect_cut(out, len);
            break;
        }
        memcpy(out + len, piece, piece_len);
        len += piece_len;
    }
    out[len] = '\0';
    return len;
}

static struct slice span_inside(struct slice text, const struct skim_span *span)
{
    return slice_of(text.ptr + span->start + 1, (size_t)(span->end - span->start - 2));
}

uint64_t dialect_text_bytes(struct slice text, const struct skim_span *span)
{
    if (span->type != SKIM_STRING)
        return 0;
    struct slice inside = span_inside(text, span);
    if (!span->has_escapes)
        return inside.len;
    const char *at = inside.ptr, *end = inside.ptr + inside.len;
    uint64_t bytes = 0;
    while (at < end) {
        const char *escape = memchr(at, '\\', (size_t)(end - at));
        if (escape == NULL)
            return bytes + (uint64_t)(end - at);
        bytes += (uint64_t)(escape - at);
        at = escape;
        char piece[4];
        bytes += decode_escape(&at, end, piece);
    }
    return bytes;
}

bool dialect_copy_string(struct slice text, const struct skim_span *span, char *out, size_t size)
{
    if (span->type != SKIM_STRING || span->end - span->start <= 2)
        return false;
    return dialect_decode(span_inside(text, span), out, size) > 0;
}

// ---- writers ----

int dialect_check_order(const struct dialect_writer *writer, const struct event *event)
{
    if (writer->has_finished)
        return GW_EINVAL;
    switch (event->kind) {
    case EVENT_START: return writer->has_started ? GW_EINVAL : 0;
    case EVENT_BLOCK_START:
        return writer->has_started && !writer->has_open_block && event->index == writer->index
                   ? 0
                   : GW_EINVAL;
    case EVENT_BLOCK_DELTA:
    case EVENT_BLOCK_END:
        return writer->has_open_block && event->index == writer->index ? 0 : GW_EINVAL;
    case EVENT_USAGE: return 0;
    case EVENT_FINISH: return writer->has_started && !writer->has_open_block ? 0 : GW_EINVAL;
    case EVENT_ERROR: return event->error != NULL ? 0 : GW_EINVAL;
    }
    return GW_EINVAL;
}

static void copy_text(char *out, size_t size, struct slice text)
{
    size_t len = text.len < size ? text.len : size - 1;
    if (len < text.len)
        len = dialect_cut(text.ptr, len);
    memcpy(out, text.ptr, len);
    out[len] = '\0';
}

void dialect_note_start(struct dialect_writer *writer, const struct event *event,
                        const char *id_prefix)
{
    if (event->id.len > 0)
        copy_text(writer->id, sizeof(writer->id), event->id);
    else if (writer->id[0] == '\0')
        copy_text(writer->id, sizeof(writer->id), slice_str(id_prefix));
    if (event->model.len > 0)
        copy_text(writer->model, sizeof(writer->model), event->model);
    if (event->usage.flags != 0)
        writer->usage = event->usage;
}

void dialect_note_event(struct dialect_writer *writer, const struct event *event)
{
    switch (event->kind) {
    case EVENT_START: writer->has_started = true; break;
    case EVENT_BLOCK_START:
        writer->has_open_block = true;
        writer->open_block = event->block;
        writer->block_bytes = 0;
        if (event->block == EVENT_BLOCK_REFUSAL)
            writer->has_refusal = true;
        break;
    case EVENT_BLOCK_DELTA: writer->block_bytes += event->text.len; break;
    case EVENT_BLOCK_END:
        if (writer->open_block == EVENT_BLOCK_TOOL)
            writer->tool_count++;
        writer->has_open_block = false;
        writer->index++;
        buf_clear(&writer->text);
        break;
    case EVENT_USAGE: writer->usage = event->usage; break;
    case EVENT_FINISH:
        writer->finish = event->finish;
        writer->has_finished = true;
        break;
    case EVENT_ERROR: writer->has_finished = true; break;
    }
}

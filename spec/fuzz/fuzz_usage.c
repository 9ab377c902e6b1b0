// Arbitrary bytes as the upstream's stream, body and error of each dialect. Byte 0 chooses the
// dialect and the call, byte 1 the sizes of the pieces; the rest is what the upstream sent.
// Properties: the same events and the same reader for any split; buckets never wrap; spans lie
// inside the event; an error's message stays short and on one line.
#include "codec/dialect.h"
#include "codec/estimate.h"
#include <stdlib.h>

#define CHECK(cond) ((cond) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct run {
    struct dialect_reader reader;
    uint64_t hash;
    bool is_quick;
};

static void mix(struct run *run, uint64_t value)
{
    run->hash = (run->hash ^ value) * UINT64_C(1099511628211);
}

static void check_usage(const struct dialect_reader *reader)
{
    struct usage usage;
    if (!usage_meter_result(&reader->meter, &usage))
        return;
    CHECK(usage_prompt(&usage) <= UINT64_C(1) << 43);
    CHECK(usage_completion(&usage) <= UINT64_C(1) << 43);
    CHECK(usage_total(&usage) == usage_prompt(&usage) + usage_completion(&usage));
    CHECK((usage.flags & USAGE_REPORTED) != 0);
}

static void check_text(const struct sse_event *event, const struct dialect_info *info)
{
    if (!info->has_text)
        return;
    CHECK(info->text_start + 2 < info->text_end && info->text_end <= event->data.len);
    CHECK(event->data.ptr[info->text_start] == '"' && event->data.ptr[info->text_end - 1] == '"');
    char small[9];
    size_t len = dialect_decode(
        slice_of(event->data.ptr + info->text_start + 1, info->text_end - info->text_start - 2),
        small, sizeof(small));
    CHECK(len < sizeof(small) && small[len] == '\0');
}

static int on_event(void *user, const struct sse_event *event)
{
    struct run *run = user;
    struct dialect_info info;
    if (run->is_quick)
        dialect_inspect(&run->reader, event, &info);
    else
        run->reader.dialect->inspect(&run->reader, event, &info);
    check_text(event, &info);
    CHECK((info.class == DIALECT_EVENT_ERROR) <= run->reader.has_error);
    mix(run, info.class);
    mix(run, info.block);
    mix(run, info.index);
    mix(run, info.text_start);
    mix(run, info.text_end);
    mix(run, event->end);
    return 0;
}

static void read_stream(struct run *run, enum dialect_id id, enum dialect_op op, struct slice bytes,
                        size_t piece)
{
    struct sse sse;
    memset(run, 0, sizeof(*run));
    run->is_quick = piece <= bytes.len; // by shapes, against the scan of every event
    dialect_reader_init(&run->reader, id, op);
    sse_init(&sse, 0);
    while (bytes.len > 0) {
        size_t len = piece < bytes.len ? piece : bytes.len;
        CHECK(sse_feed(&sse, slice_of(bytes.ptr, len), on_event, run) == 0);
        bytes = slice_from(bytes, len);
    }
    CHECK(sse_finish(&sse, on_event, run) == 0);
    sse_free(&sse);
    check_usage(&run->reader);
}

static void check_same(const struct run *a, const struct run *b)
{
    CHECK(a->hash == b->hash);
    CHECK(a->reader.text_bytes == b->reader.text_bytes);
    CHECK(a->reader.has_end == b->reader.has_end && a->reader.has_finish == b->reader.has_finish);
    CHECK(a->reader.meter.seen == b->reader.meter.seen);
    CHECK(memcmp(a->reader.meter.raw, b->reader.meter.raw, sizeof(a->reader.meter.raw)) == 0);
    CHECK(strcmp(a->reader.model, b->reader.model) == 0);
    CHECK(strcmp(a->reader.finish, b->reader.finish) == 0);
    CHECK(strcmp(a->reader.error_message, b->reader.error_message) == 0);
}

static void check_message(struct slice message)
{
    CHECK(message.len > 0 && message.len <= 512);
    for (size_t i = 0; i < message.len; i++)
        CHECK((unsigned char)message.ptr[i] >= ' ');
}

static void read_whole(enum dialect_id id, enum dialect_op op, struct slice body)
{
    struct dialect_reader reader;
    struct dialect_info info;
    struct dialect_error error;
    bool is_error;
    dialect_reader_init(&reader, id, op);
    reader.dialect->inspect_body(&reader, body, &info, &is_error);
    check_usage(&reader);
    if (is_error)
        check_message(info.error.message);
    struct arena *arena = arena_new(1024);
    struct buf out = BUF_INIT(0);
    CHECK(arena != NULL);
    dialect_read_error(body, 500, arena, &error);
    check_message(error.message);
    // What we render has our shape, whatever the upstream wrote.
    CHECK(reader.dialect->render_error(&error, &out) == 0);
    CHECK(reader.dialect->is_error_shape(buf_slice(&out)));
    buf_clear(&out);
    CHECK(reader.dialect->render_stream_error(&reader, &error, &out) == 0);
    struct run run;
    read_stream(&run, id, op, buf_slice(&out), out.len);
    CHECK(run.reader.has_error && run.reader.dialect->may_end(&run.reader));
    buf_free(&out);
    arena_free(arena);
    CHECK(estimate_input_tokens(body) <= 4000 * (uint64_t)body.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct {
        enum dialect_id id;
        enum dialect_op op;
    } CALLS[] = {
        {DIALECT_OPENAI, DIALECT_OP_CHAT},         {DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES},
        {DIALECT_RESPONSES, DIALECT_OP_RESPONSES}, {DIALECT_OPENAI, DIALECT_OP_COMPLETIONS},
        {DIALECT_OPENAI, DIALECT_OP_EMBEDDINGS},   {DIALECT_ANTHROPIC, DIALECT_OP_COUNT_TOKENS},
    };
    if (size < 2)
        return 0;
    enum dialect_id id = CALLS[data[0] % 6].id;
    enum dialect_op op = CALLS[data[0] % 6].op;
    struct slice bytes = slice_of((const char *)data + 2, size - 2);
    struct run whole, split;
    read_stream(&whole, id, op, bytes, bytes.len + 1);
    read_stream(&split, id, op, bytes, 1 + data[1] % 64);
    check_same(&whole, &split);
    read_stream(&split, id, op, bytes, 1);
    check_same(&whole, &split);
    read_whole(id, op, bytes);
    return 0;
}

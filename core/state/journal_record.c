// The binary form of a log record: a version byte, then fields of {tag, length, bytes}, both
// numbers as varints. Empty fields are left out; unknown tags are skipped, so an older binary reads
// a newer record.
#include "base/arena.h"
#include "base/buf.h"
#include "state/journal.h"

#define VERSION 1
#define ATTEMPTS_MAX 16
#define REASON_MAX 200
#define TAG_ATTEMPT 200

enum field_kind { FIELD_I64, FIELD_I32, FIELD_U64, FIELD_U32, FIELD_BOOL, FIELD_TEXT };

// tag → place in struct log_record. Tags are never used anew.
static const struct field {
    uint8_t tag;
    enum field_kind kind;
    size_t offset;
    size_t max; // of a text
} fields[] = {
#define AT(member) offsetof(struct log_record, member)
    {1, FIELD_I64, AT(created_ms), 0},
    {2, FIELD_I64, AT(key_id), 0},
    {3, FIELD_I64, AT(user_id), 0},
    {4, FIELD_I64, AT(upstream_id), 0},
    {5, FIELD_TEXT, AT(request_id), 128},
    {6, FIELD_TEXT, AT(client_ip), 64},
    {7, FIELD_TEXT, AT(method), 16},
    {8, FIELD_TEXT, AT(path), 1024},
    {9, FIELD_TEXT, AT(dialect), 32},
    {10, FIELD_TEXT, AT(model), 256},
    {11, FIELD_TEXT, AT(upstream_model), 256},
    {12, FIELD_TEXT, AT(finish), 64},
    {13, FIELD_TEXT, AT(error_code), 128},
    {14, FIELD_TEXT, AT(error_message), 2048},
    {15, FIELD_TEXT, AT(flags), 512},
    {16, FIELD_TEXT, AT(key_prefix), 64},
    {17, FIELD_TEXT, AT(user_agent), 256},
    {18, FIELD_TEXT, AT(session), 256},
    {19, FIELD_TEXT, AT(discounts_json), 8192},
    {20, FIELD_TEXT, AT(plugin), 128},
    {21, FIELD_I32, AT(status), 0},
    {22, FIELD_U32, AT(duration_ms), 0},
    {23, FIELD_U32, AT(ttft_ms), 0},
    {24, FIELD_BOOL, AT(is_stream), 0},
    {25, FIELD_BOOL, AT(is_success), 0},
    {26, FIELD_U64, AT(bytes_in), 0},
    {27, FIELD_U64, AT(bytes_out), 0},
    {28, FIELD_I64, AT(cost_nano), 0},
    {29, FIELD_I64, AT(price_version), 0},
    {40, FIELD_U64, AT(usage.input), 0},
    {41, FIELD_U64, AT(usage.cache_read), 0},
    {42, FIELD_U64, AT(usage.cache_write_5m), 0},
    {43, FIELD_U64, AT(usage.cache_write_1h), 0},
    {44, FIELD_U64, AT(usage.audio_in), 0},
    {45, FIELD_U64, AT(usage.image_in), 0},
    {46, FIELD_U64, AT(usage.output), 0},
    {47, FIELD_U64, AT(usage.reasoning), 0},
    {48, FIELD_U64, AT(usage.audio_out), 0},
    {49, FIELD_U64, AT(usage.server_calls), 0},
    {50, FIELD_U32, AT(usage.flags), 0},
#undef AT
};
#define FIELD_COUNT (sizeof(fields) / sizeof(fields[0]))
#define TAG_ID 60

static size_t put_varint(uint64_t value, char out[10])
{
    size_t len = 0;
    while (value >= 0x80) {
        out[len++] = (char)(value | 0x80);
        value >>= 7;
    }
    out[len++] = (char)value;
    return len;
}

static bool get_varint(struct slice *from, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && from->len; shift += 7) {
        unsigned char byte = (unsigned char)*from->ptr;
        *from = slice_from(*from, 1);
        if (shift == 63 && byte > 1)
            return false;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

static int put_field(struct buf *out, uint8_t tag, struct slice bytes)
{
    char head[11];
    head[0] = (char)tag;
    size_t len = 1 + put_varint(bytes.len, head + 1);
    int err = buf_append(out, slice_of(head, len));
    return err ? err : buf_append(out, bytes);
}

static uint64_t zigzag(int64_t value)
{
    return ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
}

static int64_t unzigzag(uint64_t value)
{
    return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
}

// Cut at a character's border.
static struct slice cut_text(struct slice text, size_t max)
{
    if (text.len <= max)
        return text;
    while (max > 0 && ((unsigned char)text.ptr[max] & 0xc0) == 0x80)
        max--;
    return slice_of(text.ptr, max);
}

static int put_number(struct buf *out, uint8_t tag, uint64_t value)
{
    char bytes[10];
    return value ? put_field(out, tag, slice_of(bytes, put_varint(value, bytes))) : 0;
}

static int put_record_field(struct buf *out, const struct field *field, const void *place)
{
    switch (field->kind) {
    case FIELD_I64: return put_number(out, field->tag, zigzag(*(const int64_t *)place));
    case FIELD_I32: return put_number(out, field->tag, zigzag(*(const int32_t *)place));
    case FIELD_U64: return put_number(out, field->tag, *(const uint64_t *)place);
    case FIELD_U32: return put_number(out, field->tag, *(const uint32_t *)place);
    case FIELD_BOOL: return put_number(out, field->tag, *(const bool *)place);
    default: break;
    }
    struct slice text = cut_text(*(const struct slice *)place, field->max);
    return text.len ? put_field(out, field->tag, text) : 0;
}

static int put_attempt(struct buf *out, const struct log_attempt *attempt)
{
    char bytes[3 * 10 + REASON_MAX];
    struct slice reason = cut_text(attempt->reason, REASON_MAX);
    size_t len = put_varint(zigzag(attempt->upstream_id), bytes);
    len += put_varint(zigzag(attempt->status), bytes + len);
    len += put_varint(attempt->duration_ms, bytes + len);
    if (reason.len)
        memcpy(bytes + len, reason.ptr, reason.len);
    return put_field(out, TAG_ATTEMPT, slice_of(bytes, len + reason.len));
}

int log_record_encode(const struct log_record *record, struct buf *out)
{
    size_t before = out->len;
    int err = buf_append_char(out, VERSION);
    if (err == 0)
        err = put_field(out, TAG_ID, slice_of((const char *)record->id.bytes, 16));
    for (size_t i = 0; i < FIELD_COUNT && err == 0; i++)
        err = put_record_field(out, &fields[i], (const char *)record + fields[i].offset);
    for (size_t i = 0; i < record->attempt_count && i < ATTEMPTS_MAX && err == 0; i++)
        err = put_attempt(out, &record->attempts[i]);
    if (err)
        buf_truncate(out, before);
    return err;
}

static int take_field(const struct field *field, struct slice bytes, struct arena *arena,
                      void *place)
{
    uint64_t number = 0;
    if (field->kind == FIELD_TEXT) {
        struct slice copy = arena_copy(arena, bytes);
        *(struct slice *)place = copy;
        return copy.ptr ? 0 : GW_ENOMEM;
    }
    if (!get_varint(&bytes, &number) || bytes.len)
        return GW_ECORRUPT;
    switch (field->kind) {
    case FIELD_I64: *(int64_t *)place = unzigzag(number); break;
    case FIELD_I32:
        if (unzigzag(number) < INT32_MIN || unzigzag(number) > INT32_MAX)
            return GW_ECORRUPT;
        *(int32_t *)place = (int32_t)unzigzag(number);
        break;
    case FIELD_U64: *(uint64_t *)place = number; break;
    case FIELD_U32:
        if (number > UINT32_MAX)
            return GW_ECORRUPT;
        *(uint32_t *)place = (uint32_t)number;
        break;
    default: *(bool *)place = number != 0; break;
    }
    return 0;
}

static int take_attempt(struct slice bytes, struct arena *arena, struct log_attempt *attempt)
{
    uint64_t upstream = 0, status = 0, duration = 0;
    if (!get_varint(&bytes, &upstream) || !get_varint(&bytes, &status) ||
        !get_varint(&bytes, &duration) || duration > UINT32_MAX)
        return GW_ECORRUPT;
    attempt->upstream_id = unzigzag(upstream);
    attempt->status = (int32_t)unzigzag(status);
    attempt->duration_ms = (uint32_t)duration;
    attempt->reason = arena_copy(arena, bytes);
    return attempt->reason.ptr ? 0 : GW_ENOMEM;
}

int log_record_decode(struct slice payload, struct arena *arena, struct log_record *out)
{
    *out = (struct log_record){0};
    for (size_t i = 0; i < FIELD_COUNT; i++)
        if (fields[i].kind == FIELD_TEXT)
            *(struct slice *)((char *)out + fields[i].offset) = SLICE_LIT("");
    struct log_attempt *attempts = arena_zalloc(arena, ATTEMPTS_MAX * sizeof(*attempts));
    if (!attempts)
        return GW_ENOMEM;
    out->attempts = attempts;
    if (payload.len == 0 || *payload.ptr < 1)
        return GW_ECORRUPT;
    payload = slice_from(payload, 1);
    bool has_id = false;
    while (payload.len) {
        uint8_t tag = (uint8_t)*payload.ptr;
        uint64_t len = 0;
        payload = slice_from(payload, 1);
        if (!get_varint(&payload, &len) || len > payload.len)
            return GW_ECORRUPT;
        struct slice bytes = slice_of(payload.ptr, (size_t)len);
        payload = slice_from(payload, (size_t)len);
        int err = 0;
        if (tag == TAG_ID) {
            if (len != sizeof(out->id.bytes))
                return GW_ECORRUPT;
            memcpy(out->id.bytes, bytes.ptr, sizeof(out->id.bytes));
            has_id = true;
        } else if (tag == TAG_ATTEMPT && out->attempt_count < ATTEMPTS_MAX) {
            err = take_attempt(bytes, arena, &attempts[out->attempt_count++]);
        } else {
            for (size_t i = 0; i < FIELD_COUNT && err == 0; i++)
                if (fields[i].tag == tag)
                    err = take_field(&fields[i], bytes, arena, (char *)out + fields[i].offset);
        }
        if (err)
            return err;
    }
    return has_id ? 0 : GW_ECORRUPT;
}

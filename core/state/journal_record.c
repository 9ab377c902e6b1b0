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

enum field_kind { FIELD_NONE, FIELD_I64, FIELD_I32, FIELD_U64, FIELD_U32, FIELD_BOOL, FIELD_TEXT };

// By tag: the place in struct log_record. Tags are never used anew.
static const struct field {
    enum field_kind kind;
    size_t offset;
    size_t max; // of a text
} fields[] = {
#define AT(member) offsetof(struct log_record, member)
    [1] = {FIELD_I64, AT(created_ms), 0},
    [2] = {FIELD_I64, AT(key_id), 0},
    [3] = {FIELD_I64, AT(user_id), 0},
    [4] = {FIELD_I64, AT(upstream_id), 0},
    [5] = {FIELD_TEXT, AT(request_id), 128},
    [6] = {FIELD_TEXT, AT(client_ip), 64},
    [7] = {FIELD_TEXT, AT(method), 16},
    [8] = {FIELD_TEXT, AT(path), 1024},
    [9] = {FIELD_TEXT, AT(dialect), 32},
    [10] = {FIELD_TEXT, AT(model), 256},
    [11] = {FIELD_TEXT, AT(upstream_model), 256},
    [12] = {FIELD_TEXT, AT(finish), 64},
    [13] = {FIELD_TEXT, AT(error_code), 128},
    [14] = {FIELD_TEXT, AT(error_message), 2048},
    [15] = {FIELD_TEXT, AT(flags), 512},
    [16] = {FIELD_TEXT, AT(key_prefix), 64},
    [17] = {FIELD_TEXT, AT(user_agent), 256},
    [18] = {FIELD_TEXT, AT(session), 256},
    [19] = {FIELD_TEXT, AT(discounts_json), 8192},
    [20] = {FIELD_TEXT, AT(plugin), 128},
    [21] = {FIELD_I32, AT(status), 0},
    [22] = {FIELD_U32, AT(duration_ms), 0},
    [23] = {FIELD_U32, AT(ttft_ms), 0},
    [24] = {FIELD_BOOL, AT(is_stream), 0},
    [25] = {FIELD_BOOL, AT(is_success), 0},
    [26] = {FIELD_U64, AT(bytes_in), 0},
    [27] = {FIELD_U64, AT(bytes_out), 0},
    [28] = {FIELD_I64, AT(cost_nano), 0},
    [29] = {FIELD_I64, AT(price_version), 0},
    [40] = {FIELD_U64, AT(usage.input), 0},
    [41] = {FIELD_U64, AT(usage.cache_read), 0},
    [42] = {FIELD_U64, AT(usage.cache_write_5m), 0},
    [43] = {FIELD_U64, AT(usage.cache_write_1h), 0},
    [44] = {FIELD_U64, AT(usage.audio_in), 0},
    [45] = {FIELD_U64, AT(usage.image_in), 0},
    [46] = {FIELD_U64, AT(usage.output), 0},
    [47] = {FIELD_U64, AT(usage.reasoning), 0},
    [48] = {FIELD_U64, AT(usage.audio_out), 0},
    [49] = {FIELD_U64, AT(usage.server_calls), 0},
    [50] = {FIELD_U32, AT(usage.flags), 0},
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

static char *put_field(char *out, uint8_t tag, struct slice bytes)
{
    *out++ = (char)tag;
    out += put_varint(bytes.len, out);
    memcpy(out, bytes.ptr, bytes.len);
    return out + bytes.len;
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

static char *put_number(char *out, uint8_t tag, uint64_t value)
{
    if (value == 0)
        return out;
    size_t len = put_varint(value, out + 2);
    out[0] = (char)tag;
    out[1] = (char)len;
    return out + 2 + len;
}

static char *put_record_field(char *out, uint8_t tag, const void *place)
{
    const struct field *field = &fields[tag];
    switch (field->kind) {
    case FIELD_NONE: return out;
    case FIELD_I64: return put_number(out, tag, zigzag(*(const int64_t *)place));
    case FIELD_I32: return put_number(out, tag, zigzag(*(const int32_t *)place));
    case FIELD_U64: return put_number(out, tag, *(const uint64_t *)place);
    case FIELD_U32: return put_number(out, tag, *(const uint32_t *)place);
    case FIELD_BOOL: return put_number(out, tag, *(const bool *)place);
    default: break;
    }
    struct slice text = cut_text(*(const struct slice *)place, field->max);
    return text.len ? put_field(out, tag, text) : out;
}

static char *put_attempt(char *out, const struct log_attempt *attempt)
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
    // The most it can take is asked for once: tag, length and bytes of each field.
    size_t attempts = record->attempt_count < ATTEMPTS_MAX ? record->attempt_count : ATTEMPTS_MAX;
    size_t room = 3 + sizeof(record->id.bytes) + attempts * (3 + 3 * 10 + REASON_MAX);
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        size_t len = 10;
        if (fields[i].kind == FIELD_TEXT)
            len = ((const struct slice *)((const char *)record + fields[i].offset))->len;
        room += 4 + (fields[i].kind == FIELD_TEXT && len > fields[i].max ? fields[i].max : len);
    }
    char *start = buf_room(out, room), *at = start;
    if (!start)
        return GW_ENOMEM;
    *at++ = VERSION;
    at = put_field(at, TAG_ID, slice_of((const char *)record->id.bytes, sizeof(record->id.bytes)));
    for (size_t i = 0; i < FIELD_COUNT; i++)
        at = put_record_field(at, (uint8_t)i, (const char *)record + fields[i].offset);
    for (size_t i = 0; i < attempts; i++)
        at = put_attempt(at, &record->attempts[i]);
    buf_grew(out, (size_t)(at - start));
    return 0;
}

// Reads a number that is all of bytes.
static inline bool whole_varint(struct slice bytes, uint64_t *out)
{
    const unsigned char *at = (const unsigned char *)bytes.ptr;
    uint64_t value = 0;
    if (bytes.len == 0 || bytes.len > 10 || (bytes.len == 10 && at[9] > 1))
        return false;
    for (size_t i = 0; i < bytes.len; i++) {
        if ((at[i] >= 0x80) == (i + 1 == bytes.len)) // only the last one ends it
            return false;
        value |= (uint64_t)(at[i] & 0x7f) << (7 * i);
    }
    *out = value;
    return true;
}

static inline int take_field(const struct field *field, struct slice bytes, void *place)
{
    uint64_t number = 0;
    if (field->kind == FIELD_TEXT) {
        *(struct slice *)place = bytes;
        return 0;
    }
    if (!whole_varint(bytes, &number))
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

static int take_attempt(struct slice bytes, struct log_attempt *attempt)
{
    uint64_t upstream = 0, status = 0, duration = 0;
    if (!get_varint(&bytes, &upstream) || !get_varint(&bytes, &status) ||
        !get_varint(&bytes, &duration) || duration > UINT32_MAX)
        return GW_ECORRUPT;
    attempt->upstream_id = unzigzag(upstream);
    attempt->status = (int32_t)unzigzag(status);
    attempt->duration_ms = (uint32_t)duration;
    attempt->reason = bytes;
    return 0;
}

static const struct log_record empty = {
    .request_id = {"", 0},
    .client_ip = {"", 0},
    .method = {"", 0},
    .path = {"", 0},
    .dialect = {"", 0},
    .model = {"", 0},
    .upstream_model = {"", 0},
    .finish = {"", 0},
    .error_code = {"", 0},
    .error_message = {"", 0},
    .flags = {"", 0},
    .key_prefix = {"", 0},
    .user_agent = {"", 0},
    .session = {"", 0},
    .discounts_json = {"", 0},
    .plugin = {"", 0},
};

int log_record_decode(struct slice payload, struct arena *arena, struct log_record *out)
{
    *out = empty;
    if (payload.len == 0 || *payload.ptr < 1)
        return GW_ECORRUPT;
    const unsigned char *at = (const unsigned char *)payload.ptr + 1, *end = at + payload.len - 1;
    bool has_id = false;
    struct log_attempt *attempts = NULL;
    while (at < end) {
        uint8_t tag = *at++;
        uint64_t len = at < end ? *at : 0x80;
        if (len < 0x80) {
            at++;
        } else {
            struct slice rest = slice_of((const char *)at, (size_t)(end - at));
            if (!get_varint(&rest, &len))
                return GW_ECORRUPT;
            at = (const unsigned char *)rest.ptr;
        }
        if (len > (size_t)(end - at))
            return GW_ECORRUPT;
        struct slice bytes = slice_of((const char *)at, (size_t)len);
        at += len;
        int err = 0;
        if (tag == TAG_ID) {
            if (len != sizeof(out->id.bytes))
                return GW_ECORRUPT;
            memcpy(out->id.bytes, bytes.ptr, sizeof(out->id.bytes));
            has_id = true;
        } else if (tag == TAG_ATTEMPT && out->attempt_count < ATTEMPTS_MAX) {
            if (!attempts)
                attempts = arena_alloc(arena, ATTEMPTS_MAX * sizeof(*attempts));
            if (!attempts)
                return GW_ENOMEM;
            out->attempts = attempts;
            err = take_attempt(bytes, &attempts[out->attempt_count++]);
        } else {
            const struct field *field = &fields[tag < FIELD_COUNT ? tag : 0];
            if (field->kind != FIELD_NONE)
                err = take_field(field, bytes, (char *)out + field->offset);
        }
        if (err)
            return err;
    }
    return has_id ? 0 : GW_ECORRUPT;
}

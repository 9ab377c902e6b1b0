#include "state/upstream_row.h"
#include "base/clock.h"
#include "base/id.h"
#include "codec/json.h"
#include "codec/secret.h"
#include <stdlib.h>

#define NAME_MAX_LEN 64
#define PROVIDER_MAX 32
#define URL_MAX 2048
#define KEY_MAX 16384
#define CONFIG_MAX 65536
#define MODELS_MAX 262144
#define TIMER_MAX_MS 3600000

struct reader {
    struct upstream_input *input;
    struct arena *arena;
};

static int bad(struct upstream_input *input, const char *why)
{
    input->why = why;
    return GW_EINVAL;
}

static int keep_text(struct reader *reader, struct slice text, struct db_value *out)
{
    *out = DB_TEXT_VALUE(arena_copy(reader->arena, text));
    return out->bytes.ptr ? 0 : GW_ENOMEM;
}

static int read_text(struct reader *reader, yyjson_val *val, size_t min, size_t max,
                     struct db_value *out)
{
    struct slice text = json_string_slice(val);
    if (!text.ptr)
        return bad(reader->input, "must be a text");
    if (text.len < min)
        return bad(reader->input, "must not be empty");
    if (text.len > max)
        return bad(reader->input, "is too long");
    if (text.len && memchr(text.ptr, '\0', text.len))
        return bad(reader->input, "must not hold a NUL character");
    return keep_text(reader, text, out);
}

static int read_url(struct reader *reader, yyjson_val *val, struct db_value *out)
{
    int err = read_text(reader, val, 1, URL_MAX, out);
    if (err)
        return err;
    struct slice url = out->bytes;
    size_t scheme = slice_starts(url, "https://") ? 8 : slice_starts(url, "http://") ? 7 : 0;
    if (scheme == 0 || url.len == scheme || strchr("/?#@:", url.ptr[scheme]))
        return bad(reader->input, "must be an http or https URL with a host");
    for (size_t i = 0; i < url.len; i++)
        if ((unsigned char)url.ptr[i] <= ' ' || url.ptr[i] == 0x7f)
            return bad(reader->input, "must not hold spaces or control characters");
    return 0;
}

static int read_bool(struct reader *reader, yyjson_val *val, struct db_value *out)
{
    if (!yyjson_is_bool(val))
        return bad(reader->input, "must be true or false");
    *out = DB_INT_VALUE(yyjson_is_true(val));
    return 0;
}

static int read_whole(struct reader *reader, yyjson_val *val, int64_t min, int64_t max,
                      const char *why, struct db_value *out)
{
    int64_t number = 0;
    if (json_get_i64(val, &number) != 0 || number < min || number > max)
        return bad(reader->input, why);
    *out = DB_INT_VALUE(number);
    return 0;
}

static int read_word(struct reader *reader, yyjson_val *val, const char *const *words,
                     const char *why, struct db_value *out)
{
    struct slice text = json_string_slice(val);
    for (; *words; words++)
        if (text.ptr && slice_is(text, *words))
            return keep_text(reader, text, out);
    return bad(reader->input, why);
}

static int read_formats(struct reader *reader, yyjson_val *val, struct db_value *out)
{
    static const char *const known[] = {"openai", "responses", "claude"};
    static const char *const why = "must be a list of openai, responses, claude";
    bool has[3] = {false};
    size_t count = 0, i, max;
    yyjson_val *item;
    struct slice text = json_string_slice(val);
    if (!yyjson_is_arr(val) && !text.ptr)
        return bad(reader->input, why);
    for (size_t k = 0; k < 3 && text.ptr; k++) // the short form: one name
        has[k] = slice_is(text, known[k]);
    yyjson_arr_foreach(val, i, max, item)
    {
        size_t k = 0;
        while (k < 3 && !slice_is(json_string_slice(item), known[k]))
            k++;
        if (k == 3)
            return bad(reader->input, why);
        has[k] = true;
    }
    struct slice list = SLICE_LIT("");
    for (size_t k = 0; k < 3; k++) {
        if (!has[k])
            continue;
        list =
            arena_printf(reader->arena, "%.*s%s%s", SLICE_FMT(list), count++ ? "," : "", known[k]);
        if (!list.ptr)
            return GW_ENOMEM;
    }
    if (count == 0)
        return bad(reader->input, why);
    *out = DB_TEXT_VALUE(list);
    return 0;
}

static int keep_json(struct reader *reader, yyjson_val *val, size_t max, struct db_value *out)
{
    size_t len = 0;
    char *text = yyjson_val_write(val, 0, &len);
    if (!text)
        return GW_ENOMEM;
    int err =
        len > max ? bad(reader->input, "is too long") : keep_text(reader, slice_of(text, len), out);
    free(text);
    return err;
}

static int read_models(struct reader *reader, yyjson_val *val, struct db_value *out)
{
    static const char *const why = "must be a list of names or an object of names";
    size_t i, max;
    yyjson_val *key, *item;
    if (!yyjson_is_arr(val) && !yyjson_is_obj(val))
        return bad(reader->input, why);
    yyjson_arr_foreach(val, i, max, item)
    {
        if (!json_string_slice(item).len)
            return bad(reader->input, why);
    }
    yyjson_obj_foreach(val, i, max, key, item)
    {
        if (!json_string_slice(key).len || !json_string_slice(item).len)
            return bad(reader->input, why);
    }
    if (yyjson_get_len(val) == 0) {
        *out = DB_NULL_VALUE; // any model
        return 0;
    }
    return keep_json(reader, val, MODELS_MAX, out);
}

// An object, or its text as surface B's clients send it.
static int read_config(struct reader *reader, yyjson_val *val, struct db_value *out)
{
    struct slice text = json_string_slice(val);
    if (yyjson_is_obj(val))
        return keep_json(reader, val, CONFIG_MAX, out);
    if (text.ptr && text.len == 0) {
        *out = DB_NULL_VALUE;
        return 0;
    }
    struct json_doc *doc = NULL;
    const char *why = NULL;
    size_t at = 0;
    bool is_object = text.ptr && text.len <= CONFIG_MAX &&
                     json_parse(text, CONFIG_MAX * 16, &doc, &why, &at) == 0 &&
                     yyjson_is_obj(json_root(doc));
    json_doc_free(doc);
    return is_object ? keep_text(reader, text, out) : bad(reader->input, "must be a JSON object");
}

static int read_key(struct reader *reader, yyjson_val *val)
{
    struct slice text = json_string_slice(val);
    if (!text.ptr || text.len > KEY_MAX)
        return bad(reader->input, "must be a text");
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] <= ' ' || (unsigned char)text.ptr[i] >= 0x7f)
            return bad(reader->input, "must be printable ASCII without spaces");
    reader->input->api_key = arena_copy(reader->arena, text);
    return reader->input->api_key.ptr ? 0 : GW_ENOMEM;
}

static int read_field(struct reader *reader, uint32_t field, yyjson_val *val)
{
    static const char *const passthrough[] = {"all", NULL};
    static const char *const disconnect[] = {"cancel", "drain", NULL};
    static const char *const timer = "must be whole milliseconds from 0 to 3600000";
    struct upstream_input *input = reader->input;
    switch (field) {
    case UPSTREAM_NAME: return read_text(reader, val, 1, NAME_MAX_LEN, &input->name);
    case UPSTREAM_PROVIDER: return read_text(reader, val, 1, PROVIDER_MAX, &input->provider);
    case UPSTREAM_BASE_URL: return read_url(reader, val, &input->base_url);
    case UPSTREAM_API_KEY: return read_key(reader, val);
    case UPSTREAM_FORMATS: return read_formats(reader, val, &input->formats);
    case UPSTREAM_MODELS: return read_models(reader, val, &input->models);
    case UPSTREAM_IS_DEFAULT: return read_bool(reader, val, &input->is_default);
    case UPSTREAM_IS_ACTIVE: return read_bool(reader, val, &input->is_active);
    case UPSTREAM_TIMEOUT:
        return read_whole(reader, val, 1, 3600, "must be whole seconds from 1 to 3600",
                          &input->timeout_s);
    case UPSTREAM_WEIGHT:
        return read_whole(reader, val, 1, 1000000, "must be a whole number from 1 to 1000000",
                          &input->weight);
    case UPSTREAM_PRIORITY:
        return read_whole(reader, val, -1000000, 1000000,
                          "must be a whole number from -1000000 to 1000000", &input->priority);
    case UPSTREAM_PASSTHROUGH:
        return read_word(reader, val, passthrough, "must be \"all\" or null", &input->passthrough);
    case UPSTREAM_DISCONNECT:
        return read_word(reader, val, disconnect, "must be \"cancel\" or \"drain\"",
                         &input->disconnect);
    case UPSTREAM_CONFIG: return read_config(reader, val, &input->config);
    case UPSTREAM_CONNECT_MS:
        return read_whole(reader, val, 0, TIMER_MAX_MS, timer, &input->connect_ms);
    case UPSTREAM_TLS_MS: return read_whole(reader, val, 0, TIMER_MAX_MS, timer, &input->tls_ms);
    case UPSTREAM_FIRST_BYTE_MS:
        return read_whole(reader, val, 0, TIMER_MAX_MS, timer, &input->first_byte_ms);
    case UPSTREAM_MAX_CONCURRENCY:
        return read_whole(reader, val, 0, 1000000, "must be a whole number from 0 to 1000000",
                          &input->max_concurrency);
    default: return read_whole(reader, val, 0, TIMER_MAX_MS, timer, &input->event_ms);
    }
}

static const struct {
    const char *name;
    uint32_t field;
    bool may_be_null;
} fields[] = {
    {"name", UPSTREAM_NAME, false},
    {"provider", UPSTREAM_PROVIDER, false},
    {"base_url", UPSTREAM_BASE_URL, false},
    {"api_key", UPSTREAM_API_KEY, true},
    {"formats", UPSTREAM_FORMATS, true},
    {"models", UPSTREAM_MODELS, true},
    {"is_default", UPSTREAM_IS_DEFAULT, true},
    {"is_active", UPSTREAM_IS_ACTIVE, true},
    {"timeout", UPSTREAM_TIMEOUT, true},
    {"weight", UPSTREAM_WEIGHT, true},
    {"priority", UPSTREAM_PRIORITY, true},
    {"passthrough", UPSTREAM_PASSTHROUGH, true},
    {"disconnect", UPSTREAM_DISCONNECT, true},
    {"config", UPSTREAM_CONFIG, true},
    {"connect_ms", UPSTREAM_CONNECT_MS, true},
    {"tls_ms", UPSTREAM_TLS_MS, true},
    {"first_byte_ms", UPSTREAM_FIRST_BYTE_MS, true},
    {"event_ms", UPSTREAM_EVENT_MS, true},
    {"max_concurrency", UPSTREAM_MAX_CONCURRENCY, true},
};
#define FIELD_COUNT (sizeof(fields) / sizeof(fields[0]))

// Fields for which null clears the value; for the others it is as if they were not there.
#define CLEARABLE                                                                                  \
    (UPSTREAM_MODELS | UPSTREAM_TIMEOUT | UPSTREAM_PASSTHROUGH | UPSTREAM_DISCONNECT |             \
     UPSTREAM_CONFIG)

int upstream_input_read(yyjson_val *object, const char *skip, struct arena *arena,
                        struct upstream_input *out)
{
    struct reader reader = {out, arena};
    size_t i, max;
    yyjson_val *key, *val;
    *out = (struct upstream_input){0};
    if (!yyjson_is_obj(object)) {
        out->bad_field = "";
        return bad(out, "must be an object");
    }
    yyjson_obj_foreach(object, i, max, key, val)
    {
        struct slice name = json_string_slice(key);
        if (skip && slice_is(name, skip))
            continue;
        size_t k = 0;
        while (k < FIELD_COUNT && !slice_is(name, fields[k].name))
            k++;
        if (k == FIELD_COUNT) {
            char *copy = arena_copyz(arena, name.len > 64 ? slice_of(name.ptr, 64) : name);
            out->bad_field = copy ? copy : "";
            return bad(out, "is unknown");
        }
        out->bad_field = fields[k].name;
        if (yyjson_is_null(val)) {
            if (!fields[k].may_be_null)
                return bad(out, "must not be null");
            out->given |= fields[k].field & CLEARABLE;
            continue;
        }
        int err = read_field(&reader, fields[k].field, val);
        if (err)
            return err;
        out->given |= fields[k].field;
    }
    // An empty key means "unchanged" in the forms of the console.
    if (out->api_key.len == 0)
        out->given &= ~(uint32_t)UPSTREAM_API_KEY;
    out->bad_field = NULL;
    return 0;
}

void upstream_input_wipe(struct upstream_input *input)
{
    secret_zero((void *)input->api_key.ptr, input->api_key.len);
    input->api_key = SLICE_NONE;
}

int store_note_change(struct db *db, const char *kind, int64_t id)
{
    struct db_value args[] = {DB_TEXT_VALUE(slice_str(kind)), DB_INT_VALUE(id),
                              DB_INT_VALUE(clock_wall_ms())};
    return db_run(db, SLICE_LIT("INSERT INTO changes (kind, id, at_ms) VALUES (?, ?, ?)"), args, 3,
                  NULL, 0, NULL);
}

static int clear_other_default(struct db *db, int64_t id)
{
    struct db_value args[] = {DB_INT_VALUE(clock_wall_ms()), DB_INT_VALUE(id)};
    return db_run(db,
                  SLICE_LIT("UPDATE upstreams SET is_default = 0, updated_ms = ? "
                            "WHERE is_default = 1 AND id <> ?"),
                  args, 2, NULL, 0, NULL);
}

static int encrypt_key(const struct fernet *fernet, struct slice key, struct buf *token,
                       struct buf *mask)
{
    int err = fernet_encrypt(fernet, key, token);
    return err ? err : secret_mask_upstream_key(key, mask);
}

static struct db_value default_formats(struct slice provider)
{
    if (slice_is(provider, "openai"))
        return DB_TEXT_VALUE(SLICE_LIT("openai,responses"));
    if (slice_is(provider, "anthropic"))
        return DB_TEXT_VALUE(SLICE_LIT("claude"));
    return DB_TEXT_VALUE(SLICE_LIT("openai"));
}

static struct db_value or_int(struct db_value value, bool is_given, int64_t otherwise)
{
    return is_given ? value : DB_INT_VALUE(otherwise);
}

int upstream_row_insert(struct db *db, const struct fernet *fernet, const struct upstream_input *in,
                        int64_t *id)
{
    struct gw_id random_id;
    char uid[37];
    struct buf token = BUF_INIT(0), mask = BUF_INIT(0);
    int64_t now_ms = clock_wall_ms();
    int err = id_new_random(&random_id);
    if (err)
        return err;
    id_format(&random_id, uid);
    bool has_key = in->given & UPSTREAM_API_KEY;
    if (has_key)
        err = encrypt_key(fernet, in->api_key, &token, &mask);
    if (err == 0 && in->is_default.integer)
        err = clear_other_default(db, 0);
    const struct db_value args[] = {
        DB_TEXT_VALUE(slice_str(uid)),
        in->name,
        in->provider,
        in->base_url,
        has_key ? DB_TEXT_VALUE(buf_slice(&token)) : DB_NULL_VALUE,
        has_key ? DB_TEXT_VALUE(buf_slice(&mask)) : DB_NULL_VALUE,
        in->given & UPSTREAM_FORMATS ? in->formats : default_formats(in->provider.bytes),
        in->models,
        or_int(in->is_default, in->given & UPSTREAM_IS_DEFAULT, 0),
        or_int(in->is_active, in->given & UPSTREAM_IS_ACTIVE, 1),
        in->timeout_s,
        or_int(in->weight, in->given & UPSTREAM_WEIGHT, 50),
        or_int(in->priority, in->given & UPSTREAM_PRIORITY, 0),
        in->passthrough,
        in->disconnect,
        or_int(in->connect_ms, in->given & UPSTREAM_CONNECT_MS, 0),
        or_int(in->tls_ms, in->given & UPSTREAM_TLS_MS, 0),
        or_int(in->first_byte_ms, in->given & UPSTREAM_FIRST_BYTE_MS, 0),
        or_int(in->event_ms, in->given & UPSTREAM_EVENT_MS, 0),
        or_int(in->max_concurrency, in->given & UPSTREAM_MAX_CONCURRENCY, 0),
        in->config,
        DB_INT_VALUE(now_ms),
        DB_INT_VALUE(now_ms),
    };
    if (err == 0)
        err = db_run(db,
                     SLICE_LIT("INSERT INTO upstreams (uid, name, provider, base_url, "
                               "api_key_enc, key_mask, formats, models, is_default, is_active, "
                               "timeout_s, weight, priority, passthrough, disconnect, connect_ms, "
                               "tls_ms, first_byte_ms, event_ms, max_concurrency, config, "
                               "created_ms, updated_ms) "
                               "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"),
                     args, sizeof(args) / sizeof(args[0]), NULL, 0, NULL);
    if (err == 0) {
        *id = db_last_id(db);
        err = store_note_change(db, "upstream", *id);
    }
    buf_free(&token);
    buf_free(&mask);
    return err;
}

int upstream_row_update(struct db *db, const struct fernet *fernet, int64_t id,
                        const struct upstream_input *in)
{
    // One constant statement: a flag per column says whether it changes.
    struct buf token = BUF_INIT(0), mask = BUF_INIT(0);
    int err = 0;
    if (in->given & UPSTREAM_API_KEY)
        err = encrypt_key(fernet, in->api_key, &token, &mask);
    if (err == 0 && in->is_default.integer)
        err = clear_other_default(db, id);
    const struct {
        uint32_t field;
        struct db_value value;
    } columns[] = {
        {UPSTREAM_NAME, in->name},
        {UPSTREAM_PROVIDER, in->provider},
        {UPSTREAM_BASE_URL, in->base_url},
        {UPSTREAM_API_KEY, DB_TEXT_VALUE(buf_slice(&token))},
        {UPSTREAM_API_KEY, DB_TEXT_VALUE(buf_slice(&mask))},
        {UPSTREAM_FORMATS, in->formats},
        {UPSTREAM_MODELS, in->models},
        {UPSTREAM_IS_DEFAULT, in->is_default},
        {UPSTREAM_IS_ACTIVE, in->is_active},
        {UPSTREAM_TIMEOUT, in->timeout_s},
        {UPSTREAM_WEIGHT, in->weight},
        {UPSTREAM_PRIORITY, in->priority},
        {UPSTREAM_PASSTHROUGH, in->passthrough},
        {UPSTREAM_DISCONNECT, in->disconnect},
        {UPSTREAM_CONNECT_MS, in->connect_ms},
        {UPSTREAM_TLS_MS, in->tls_ms},
        {UPSTREAM_FIRST_BYTE_MS, in->first_byte_ms},
        {UPSTREAM_EVENT_MS, in->event_ms},
        {UPSTREAM_MAX_CONCURRENCY, in->max_concurrency},
        {UPSTREAM_CONFIG, in->config},
    };
    enum { COLUMNS = sizeof(columns) / sizeof(columns[0]) };
    struct db_value args[COLUMNS * 2 + 2];
    for (size_t i = 0; i < COLUMNS; i++) {
        bool is_given = in->given & columns[i].field;
        args[i * 2] = DB_INT_VALUE(is_given);
        args[i * 2 + 1] = is_given ? columns[i].value : DB_NULL_VALUE;
    }
    args[COLUMNS * 2] = DB_INT_VALUE(clock_wall_ms());
    args[COLUMNS * 2 + 1] = DB_INT_VALUE(id);
    if (err == 0)
        err = db_run(db,
                     SLICE_LIT("UPDATE upstreams SET name = CASE WHEN ? THEN ? ELSE name END, "
                               "provider = CASE WHEN ? THEN ? ELSE provider END, base_url = CASE "
                               "WHEN ? THEN ? ELSE base_url END, "
                               "api_key_enc = CASE WHEN ? THEN ? ELSE api_key_enc END, key_mask = "
                               "CASE WHEN ? THEN ? ELSE key_mask END, "
                               "formats = CASE WHEN ? THEN ? ELSE formats END, models = CASE WHEN "
                               "? THEN ? ELSE models END, "
                               "is_default = CASE WHEN ? THEN ? ELSE is_default END, is_active = "
                               "CASE WHEN ? THEN ? ELSE is_active END, "
                               "timeout_s = CASE WHEN ? THEN ? ELSE timeout_s END, weight = CASE "
                               "WHEN ? THEN ? ELSE weight END, "
                               "priority = CASE WHEN ? THEN ? ELSE priority END, passthrough = "
                               "CASE WHEN ? THEN ? ELSE passthrough END, "
                               "disconnect = CASE WHEN ? THEN ? ELSE disconnect END, connect_ms = "
                               "CASE WHEN ? THEN ? ELSE connect_ms END, "
                               "tls_ms = CASE WHEN ? THEN ? ELSE tls_ms END, first_byte_ms = CASE "
                               "WHEN ? THEN ? ELSE first_byte_ms END, "
                               "event_ms = CASE WHEN ? THEN ? ELSE event_ms END, "
                               "max_concurrency = CASE WHEN ? THEN ? ELSE max_concurrency END, "
                               "config = CASE "
                               "WHEN ? THEN ? ELSE config END, "
                               "updated_ms = ? WHERE id = ?"),
                     args, COLUMNS * 2 + 2, NULL, 0, NULL);
    if (err == 0)
        err = store_note_change(db, "upstream", id);
    buf_free(&token);
    buf_free(&mask);
    return err;
}

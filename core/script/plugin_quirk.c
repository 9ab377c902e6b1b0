// Quirks of providers: Lua data (as JSON) to struct quirk. Everything is checked here, so that flow
// applies it without a look.
#include "script/plugin_internal.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_ENTRIES 128

const struct quirk plugin_generic_quirk = {
    .provider = {"generic", 7},
    .speaks = {[DIALECT_OPENAI] = true},
    .auth_header = {"authorization", 13},
    .auth_prefix = {"Bearer ", 7},
    .stream_usage = QUIRK_STREAM_USAGE_INJECT,
};

static const char *const op_names[8] = {
    [DIALECT_OP_CHAT] = "chat",
    [DIALECT_OP_COMPLETIONS] = "completions",
    [DIALECT_OP_EMBEDDINGS] = "embeddings",
    [DIALECT_OP_RESPONSES] = "responses",
    [DIALECT_OP_MESSAGES] = "messages",
    [DIALECT_OP_COUNT_TOKENS] = "count_tokens",
};

struct reader {
    struct arena *arena;
    struct plugin_def *def;
    struct buf *problems;
    struct slice provider;
    bool is_bad, is_out_of_memory;
};

__attribute__((format(printf, 3, 4))) static void problem(struct reader *reader, const char *find,
                                                          const char *format, ...)
{
    char what[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    plugin_problem(reader->problems, reader->def, find, "quirks.%.*s%s%s",
                   (int)(reader->provider.len > 40 ? 40 : reader->provider.len),
                   reader->provider.ptr, *what == '.' ? "" : ": ", what);
    reader->is_bad = true;
}

static void *take(struct reader *reader, size_t count, size_t size)
{
    void *mem = arena_zalloc(reader->arena, (count ? count : 1) * size);
    if (!mem)
        reader->is_out_of_memory = true;
    return mem;
}

// An empty Lua table is an object.
static bool is_empty(yyjson_val *val)
{
    return yyjson_is_obj(val) && yyjson_obj_size(val) == 0;
}

static bool is_header_name(struct slice name)
{
    if (name.len == 0 || name.len > 64)
        return false;
    for (size_t i = 0; i < name.len; i++)
        if (!isalnum((unsigned char)name.ptr[i]) && name.ptr[i] != '-' && name.ptr[i] != '_')
            return false;
    return true;
}

static struct slice lower(struct reader *reader, struct slice text)
{
    char *copy = arena_copyz(reader->arena, text);
    if (!copy) {
        reader->is_out_of_memory = true;
        return SLICE_LIT("");
    }
    for (size_t i = 0; i < text.len; i++)
        copy[i] = (char)tolower((unsigned char)copy[i]);
    return slice_of(copy, text.len);
}

static bool is_header_value(struct slice value)
{
    for (size_t i = 0; i < value.len; i++)
        if ((unsigned char)value.ptr[i] < ' ' || value.ptr[i] == 0x7f)
            return false;
    return value.len <= 4096;
}

// Never a quirk's business: framing, and what would carry a client's credential.
static bool is_reserved(struct slice name)
{
    static const char *const names[] = {"host",       "content-length", "transfer-encoding",
                                        "connection", "cookie",         "proxy-authorization",
                                        "te",         "upgrade",        "expect"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (slice_is(name, names[i]))
            return true;
    return false;
}

static const struct slice *read_names(struct reader *reader, yyjson_val *list, const char *field,
                                      bool are_headers, size_t *count)
{
    *count = 0;
    if (!list || is_empty(list))
        return NULL;
    if (!yyjson_is_arr(list) || yyjson_arr_size(list) > MAX_ENTRIES) {
        problem(reader, field, ".%s must be a list of texts", field);
        return NULL;
    }
    struct slice *names = take(reader, yyjson_arr_size(list), sizeof *names);
    size_t i, max;
    yyjson_val *item;
    yyjson_arr_foreach(list, i, max, item)
    {
        struct slice name = json_string_slice(item);
        if (!names)
            return NULL;
        if (!name.ptr || name.len == 0) {
            problem(reader, field, ".%s must be a list of texts", field);
        } else if (are_headers && !is_header_name(name)) {
            problem(reader, field, ".%s: '%.*s' is no header", field,
                    (int)(name.len > 60 ? 60 : name.len), name.ptr);
        } else {
            names[*count] = are_headers ? lower(reader, name) : name;
            if (are_headers && strcmp(field, "forward") == 0 &&
                (is_reserved(names[*count]) || slice_is(names[*count], "authorization") ||
                 slice_is(names[*count], "x-api-key") || slice_is(names[*count], "api-key")))
                problem(reader, field, ".forward: %.*s is never forwarded", SLICE_FMT(name));
            (*count)++;
        }
    }
    return names;
}

static const struct http1_header *read_headers(struct reader *reader, yyjson_val *map,
                                               const char *field, size_t *count)
{
    *count = 0;
    if (!map || is_empty(map))
        return NULL;
    if (!yyjson_is_obj(map) || yyjson_obj_size(map) > MAX_ENTRIES) {
        problem(reader, field, ".%s must be a table: header → text", field);
        return NULL;
    }
    struct http1_header *headers = take(reader, yyjson_obj_size(map), sizeof *headers);
    size_t i, max;
    yyjson_val *key, *item;
    yyjson_obj_foreach(map, i, max, key, item)
    {
        struct slice name = json_string_slice(key), value = json_string_slice(item);
        if (!headers)
            return NULL;
        if (!is_header_name(name) || is_reserved(lower(reader, name)))
            problem(reader, field, ".%s: '%.*s' cannot be set", field,
                    (int)(name.len > 60 ? 60 : name.len), name.ptr);
        else if (!value.ptr || !is_header_value(value))
            problem(reader, field, ".%s.%.*s must be a text of one line", field, SLICE_FMT(name));
        else
            headers[(*count)++] = (struct http1_header){lower(reader, name), value};
    }
    return headers;
}

static struct slice json_of(struct reader *reader, yyjson_val *val)
{
    size_t len = 0;
    char *text = yyjson_val_write(val, YYJSON_WRITE_NOFLAG, &len);
    struct slice copy = text ? arena_copy(reader->arena, slice_of(text, len)) : SLICE_NONE;
    free(text);
    if (!copy.ptr)
        reader->is_out_of_memory = true;
    return copy;
}

// rename: values are names; default: values are any JSON.
static const struct quirk_field *read_fields(struct reader *reader, yyjson_val *map,
                                             const char *field, bool are_names, size_t *count)
{
    *count = 0;
    if (!map || is_empty(map))
        return NULL;
    if (!yyjson_is_obj(map) || yyjson_obj_size(map) > MAX_ENTRIES) {
        problem(reader, field, ".fields.%s must be a table", field);
        return NULL;
    }
    struct quirk_field *fields = take(reader, yyjson_obj_size(map), sizeof *fields);
    size_t i, max;
    yyjson_val *key, *item;
    yyjson_obj_foreach(map, i, max, key, item)
    {
        struct slice path = json_string_slice(key), value = json_string_slice(item);
        if (!fields)
            return NULL;
        if (are_names && (!value.ptr || value.len == 0)) {
            problem(reader, field, ".fields.rename.%.*s must be a name", SLICE_FMT(path));
            continue;
        }
        fields[*count].path = path;
        fields[*count].value = are_names ? value : json_of(reader, item);
        (*count)++;
    }
    return fields;
}

// NULL, or what is wrong with the placeholders.
static const char *check_template(struct slice template)
{
    for (size_t i = 0; i < template.len; i++) {
        if ((unsigned char)template.ptr[i] <= ' ' || template.ptr[i] == 0x7f ||
            template.ptr[i] == '#')
            return "a character that a URL must not have";
        if (template.ptr[i] != '{')
            continue;
        const char *end = memchr(template.ptr + i, '}', template.len - i);
        if (!end)
            return "{ without }";
        struct slice name = slice_of(template.ptr + i + 1, (size_t)(end - template.ptr) - i - 1);
        if (!slice_is(name, "model") && !(slice_starts(name, "config.") && name.len > 7))
            return "a placeholder must be {model} or {config.name}";
        i += name.len + 1;
    }
    return NULL;
}

static void read_paths(struct reader *reader, yyjson_val *map, struct quirk *quirk)
{
    size_t i, max;
    yyjson_val *key, *item;
    if (!map || is_empty(map))
        return;
    if (!yyjson_is_obj(map)) {
        problem(reader, "paths", ".paths must be a table: operation → path");
        return;
    }
    yyjson_obj_foreach(map, i, max, key, item)
    {
        struct slice name = json_string_slice(key), path = json_string_slice(item);
        size_t op = 0;
        for (size_t k = 0; k < 8; k++)
            if (op_names[k] && slice_is(name, op_names[k]))
                op = k;
        const char *why = path.ptr ? check_template(path) : "must be a text";
        if (op == 0)
            problem(reader, "paths", ".paths: '%.*s' is no operation (chat, completions, …)",
                    (int)(name.len > 60 ? 60 : name.len), name.ptr);
        else if (why)
            problem(reader, "paths", ".paths.%s: %s", op_names[op], why);
        else if (!slice_starts(path, "/"))
            problem(reader, "paths", ".paths.%s must start with /", op_names[op]);
        else
            quirk->paths[op] = path;
    }
}

static void read_formats(struct reader *reader, yyjson_val *list, struct quirk *quirk)
{
    size_t count;
    const struct slice *names = read_names(reader, list, "formats", false, &count);
    if (count)
        memset(quirk->speaks, 0, sizeof quirk->speaks);
    for (size_t i = 0; i < count; i++) {
        const struct dialect *dialect = dialect_by_name(names[i]);
        if (dialect)
            quirk->speaks[dialect->id] = true;
        else
            problem(reader, "formats", ".formats: '%.*s' is not openai, responses or claude",
                    (int)(names[i].len > 40 ? 40 : names[i].len), names[i].ptr);
    }
}

static void check_known(struct reader *reader, yyjson_val *map, const char *where,
                        const char *const *known)
{
    size_t i, max;
    yyjson_val *key, *item;
    yyjson_obj_foreach(map, i, max, key, item)
    {
        struct slice name = json_string_slice(key);
        const char *near = NULL;
        size_t near_distance = name.len / 3 + 1;
        bool is_known = false;
        for (const char *const *one = known; *one; one++) {
            is_known = is_known || slice_is(name, *one);
            size_t distance = schema_distance(name, slice_str(*one));
            if (distance < near_distance) {
                near_distance = distance;
                near = *one;
            }
        }
        char find[64];
        snprintf(find, sizeof find, "%.*s", (int)(name.len > 60 ? 60 : name.len), name.ptr);
        if (!is_known)
            problem(reader, find, "%sunknown field '%s'%s%s%s", where, find,
                    near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
}

static void read_auth(struct reader *reader, yyjson_val *auth, struct quirk *quirk)
{
    static const char *const known[] = {"header", "prefix", NULL};
    if (!auth)
        return;
    check_known(reader, auth, ".auth: ", known);
    struct slice header = json_string_slice(yyjson_obj_get(auth, "header"));
    struct slice prefix = json_string_slice(yyjson_obj_get(auth, "prefix"));
    if (!yyjson_is_obj(auth) || !header.ptr || !is_header_name(header) ||
        (prefix.ptr && !is_header_value(prefix))) {
        problem(reader, "auth", ".auth must be { header = …, prefix = … }");
        return;
    }
    quirk->auth_header = lower(reader, header);
    quirk->auth_prefix = prefix.ptr ? prefix : SLICE_LIT("");
}

static void read_words(struct reader *reader, yyjson_val *val, struct quirk *quirk)
{
    struct slice stream = json_string_slice(yyjson_obj_get(val, "stream_usage"));
    struct slice usage = json_string_slice(yyjson_obj_get(val, "usage"));
    if (yyjson_obj_get(val, "stream_usage")) {
        if (slice_is(stream, "inject"))
            quirk->stream_usage = QUIRK_STREAM_USAGE_INJECT;
        else if (slice_is(stream, "never"))
            quirk->stream_usage = QUIRK_STREAM_USAGE_NEVER;
        else if (slice_is(stream, "always_sent"))
            quirk->stream_usage = QUIRK_STREAM_USAGE_SENT;
        else
            problem(reader, "stream_usage", ".stream_usage must be inject, never or always_sent");
    }
    if (yyjson_obj_get(val, "usage")) {
        quirk->has_usage_rule = true;
        if (slice_is(usage, "openai"))
            quirk->usage_rule = USAGE_RULE_OPENAI;
        else if (slice_is(usage, "exclusive"))
            quirk->usage_rule = USAGE_RULE_OPENAI_EXCLUSIVE;
        else if (slice_is(usage, "responses"))
            quirk->usage_rule = USAGE_RULE_RESPONSES;
        else if (slice_is(usage, "claude"))
            quirk->usage_rule = USAGE_RULE_ANTHROPIC;
        else
            problem(reader, "usage", ".usage must be openai, exclusive, responses or claude");
    }
}

static void read_quirk(struct reader *reader, yyjson_val *val, struct quirk *quirk)
{
    static const char *const known[] = {"formats", "auth",         "headers", "set_headers",
                                        "forward", "drop_headers", "fields",  "paths",
                                        "query",   "stream_usage", "usage",   NULL};
    static const char *const known_fields[] = {"drop", "rename", "default", NULL};
    *quirk = plugin_generic_quirk;
    quirk->provider = reader->provider;
    if (!yyjson_is_obj(val)) {
        problem(reader, "quirks", "must be a table");
        return;
    }
    check_known(reader, val, "", known);
    read_formats(reader, yyjson_obj_get(val, "formats"), quirk);
    read_auth(reader, yyjson_obj_get(val, "auth"), quirk);
    quirk->default_headers = read_headers(reader, yyjson_obj_get(val, "headers"), "headers",
                                          &quirk->default_header_count);
    quirk->set_headers = read_headers(reader, yyjson_obj_get(val, "set_headers"), "set_headers",
                                      &quirk->set_header_count);
    quirk->forward =
        read_names(reader, yyjson_obj_get(val, "forward"), "forward", true, &quirk->forward_count);
    quirk->drop_headers = read_names(reader, yyjson_obj_get(val, "drop_headers"), "drop_headers",
                                     true, &quirk->drop_header_count);
    yyjson_val *fields = yyjson_obj_get(val, "fields");
    if (fields && !yyjson_is_obj(fields))
        problem(reader, "fields", ".fields must be { drop =, rename =, default = }");
    check_known(reader, fields, ".fields: ", known_fields);
    quirk->drop_fields =
        read_names(reader, yyjson_obj_get(fields, "drop"), "drop", false, &quirk->drop_field_count);
    quirk->rename_fields = read_fields(reader, yyjson_obj_get(fields, "rename"), "rename", true,
                                       &quirk->rename_field_count);
    quirk->default_fields = read_fields(reader, yyjson_obj_get(fields, "default"), "default", false,
                                        &quirk->default_field_count);
    read_paths(reader, yyjson_obj_get(val, "paths"), quirk);
    yyjson_val *query = yyjson_obj_get(val, "query");
    if (query) {
        quirk->query = json_string_slice(query);
        const char *why = quirk->query.ptr ? check_template(quirk->query) : "must be a text";
        if (why)
            problem(reader, "query", ".query: %s", why);
    }
    read_words(reader, val, quirk);
}

int plugin_read_quirks(yyjson_val *quirks, struct arena *arena, struct plugin_def *def,
                       struct buf *problems)
{
    struct reader reader = {.arena = arena, .def = def, .problems = problems};
    struct quirk *list = take(&reader, yyjson_obj_size(quirks), sizeof *list);
    size_t i, max;
    yyjson_val *key, *item;
    if (!list)
        return GW_ENOMEM;
    if (!yyjson_is_obj(quirks)) {
        reader.provider = SLICE_LIT("");
        problem(&reader, "quirks", "must be a table: provider → quirk");
        return GW_EINVAL;
    }
    yyjson_obj_foreach(quirks, i, max, key, item)
    {
        reader.provider = json_string_slice(key);
        read_quirk(&reader, item, &list[i]);
    }
    def->quirks = list;
    def->quirk_count = yyjson_obj_size(quirks);
    if (reader.is_out_of_memory)
        return GW_ENOMEM;
    return reader.is_bad ? GW_EINVAL : 0;
}

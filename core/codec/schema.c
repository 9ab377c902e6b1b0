// The check of documents and of query text. One walk finds all problems; what it builds is the
// normalised value.
#include "codec/schema.h"
#include "base/money.h"
#include "codec/schema_text.h"
#include "codec/url.h"
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_ITEMS 10000 // of a list without max
#define MAX_MEMBERS 1000
#define MAX_ITEMS_EVER 100000
#define MAX_PATH 512
#define MAX_EXACT (INT64_C(1) << 53) // integers that Lua holds exactly
#define MAX_PPM (INT64_C(1000000) * 1000000)

// ---- problems

struct checker {
    struct arena *arena;
    struct schema_result *result;
    char path[MAX_PATH];
    size_t path_len;
    bool is_out_of_memory;
};

static size_t enter(struct checker *checker, struct slice name)
{
    size_t before = checker->path_len;
    if (name.len > 64) { // a peer's text: cut at a character's border
        name.len = 64;
        while (name.len && (name.ptr[name.len] & 0xc0) == 0x80)
            name.len--;
    }
    if (before + name.len + 1 < sizeof checker->path) {
        if (before)
            checker->path[checker->path_len++] = '.';
        if (name.len)
            memcpy(checker->path + checker->path_len, name.ptr, name.len);
        checker->path_len += name.len;
    }
    return before;
}

static size_t enter_index(struct checker *checker, size_t index)
{
    char text[24];
    int len = snprintf(text, sizeof text, "%zu", index);
    return enter(checker, slice_of(text, (size_t)len));
}

__attribute__((format(printf, 3, 4))) static void problem(struct checker *checker, const char *kind,
                                                          const char *format, ...)
{
    struct schema_result *result = checker->result;
    if (result->problem_count >= SCHEMA_MAX_PROBLEMS)
        return;
    if (!result->problems)
        result->problems =
            arena_alloc(checker->arena, SCHEMA_MAX_PROBLEMS * sizeof *result->problems);
    va_list args;
    va_start(args, format);
    struct slice message = arena_vprintf(checker->arena, format, args);
    va_end(args);
    struct slice path = arena_copy(checker->arena, slice_of(checker->path, checker->path_len));
    if (!result->problems || !message.ptr || !path.ptr) {
        checker->is_out_of_memory = true;
        return;
    }
    result->problems[result->problem_count++] = (struct schema_problem){path, kind, message};
}

static size_t problem_count(const struct checker *checker)
{
    return checker->result->problem_count;
}

// A limit as its kind is written.
static const char *limit_text(const struct schema *schema, int64_t value, char out[40])
{
    switch (schema->kind) {
    case SCHEMA_DECIMAL: money_format(value, out, 40); break;
    case SCHEMA_RATE: money_format(value * 1000, out, 40); break;
    case SCHEMA_DURATION:
        money_format(value * 1000000, out, 36);
        memcpy(out + strlen(out), " s", 3);
        break;
    case SCHEMA_TIME: schema_format_time(value, out, 40); break;
    default: snprintf(out, 40, "%lld", (long long)value);
    }
    return out;
}

static void check_range(struct checker *checker, const struct schema *schema, int64_t value)
{
    char text[40];
    if (schema->has_min && value < schema->min)
        problem(checker, "range", "must be at least %s", limit_text(schema, schema->min, text));
    else if (schema->has_max && value > schema->max)
        problem(checker, "range", "must be at most %s", limit_text(schema, schema->max, text));
}

static void check_count(struct checker *checker, const struct schema *schema, size_t count,
                        const char *things)
{
    if (schema->has_min && count < (uint64_t)schema->min)
        problem(checker, "length", "must have at least %lld %s", (long long)schema->min, things);
    else if (schema->has_max && count > (uint64_t)schema->max)
        problem(checker, "length", "must have at most %lld %s", (long long)schema->max, things);
}

// ---- scalars

static const char *expectation(enum schema_kind kind)
{
    switch (kind) {
    case SCHEMA_TEXT: return "must be a text";
    case SCHEMA_INTEGER: return "must be a whole number";
    case SCHEMA_NUMBER: return "must be a number";
    case SCHEMA_BOOLEAN: return "must be true or false";
    case SCHEMA_DECIMAL: return "must be an amount: a number or a decimal text";
    case SCHEMA_RATE: return "must be a rate: a number or a decimal text, not negative";
    case SCHEMA_DURATION: return "must be a duration: seconds, or a text such as \"30s\"";
    case SCHEMA_TIME: return "must be an ISO 8601 time such as 2030-01-31T12:00:00Z";
    case SCHEMA_UUID: return "must be a UUID";
    case SCHEMA_URL: return "must be a URL";
    case SCHEMA_SECRET: return "must be a reference to a secret such as \"$EPAY_KEY\"";
    case SCHEMA_LIST: return "must be a list";
    case SCHEMA_RECORD: return "must be an object";
    case SCHEMA_MAP: return "must be an object";
    default: return "is not allowed here";
    }
}

static void wrong_type(struct checker *checker, const struct schema *schema)
{
    problem(checker, "type", "%s", expectation(schema->kind));
}

static void check_choices(struct checker *checker, const struct schema *schema, struct slice text)
{
    for (size_t i = 0; i < schema->choice_count; i++)
        if (slice_eq(schema->choices[i], text))
            return;
    char list[256];
    size_t len = 0;
    for (size_t i = 0; i < schema->choice_count && len + 40 < sizeof list; i++) {
        struct slice choice = schema->choices[i];
        len += (size_t)snprintf(list + len, sizeof list - len, "%s%.*s", i ? ", " : "",
                                (int)(choice.len > 32 ? 32 : choice.len), choice.ptr);
    }
    problem(checker, "enum", "must be one of: %.*s", (int)len, list);
}

static void check_text(struct checker *checker, const struct schema *schema, struct slice text,
                       struct schema_value *out)
{
    if (schema->is_trimmed)
        text = slice_trim(text);
    if (text.len == 0 && schema->is_empty_null) {
        out->is_null = true;
        return;
    }
    out->text = text;
    if (text.len && memchr(text.ptr, '\0', text.len)) {
        problem(checker, "format", "must not hold a NUL byte");
        return;
    }
    size_t before = problem_count(checker);
    check_count(checker, schema, schema_count_chars(text), "characters");
    if (problem_count(checker) > before)
        return;
    if (schema->choice_count)
        check_choices(checker, schema, text);
    else if (schema->compiled && !schema_match(schema->compiled, text))
        problem(checker, "pattern", "must match %.*s", SLICE_FMT(schema->pattern));
}

static void check_uuid(struct checker *checker, struct slice text, struct schema_value *out)
{
    char lower[37];
    if (schema_read_uuid(text, lower) != 0) {
        problem(checker, "format", "must be a UUID");
        return;
    }
    out->text = arena_copy(checker->arena, slice_of(lower, 36));
    if (!out->text.ptr)
        checker->is_out_of_memory = true;
}

static void check_url(struct checker *checker, const struct schema *schema, struct slice text,
                      struct schema_value *out)
{
    struct url url;
    const char *why = NULL;
    text = slice_trim(text);
    if (text.len > 2048)
        problem(checker, "length", "must have at most 2048 characters");
    else if (url_parse(text, checker->arena, &url, &why) != 0)
        problem(checker, "format", "must be a http or https URL: %s", why ? why : "malformed");
    else
        check_count(checker, schema, text.len, "characters");
    out->text = text;
}

static void check_secret(struct checker *checker, struct slice text, struct schema_value *out)
{
    bool is_good = text.len > 1 && text.len < 128 && text.ptr[0] == '$';
    for (size_t i = 1; i < text.len && is_good; i++)
        is_good = text.ptr[i] == '_' || (text.ptr[i] >= 'A' && text.ptr[i] <= 'Z') ||
                  (i > 1 && isdigit((unsigned char)text.ptr[i]));
    if (is_good)
        out->text = slice_from(text, 1);
    else
        problem(checker, "format", "must be a reference to a secret such as \"$EPAY_KEY\"");
}

// The kinds whose written form is one text, quoted or not.
static void check_written(struct checker *checker, const struct schema *schema, struct slice text,
                          struct schema_value *out)
{
    int err = 0;
    switch (schema->kind) {
    case SCHEMA_DECIMAL: err = money_parse(text, &out->integer); break;
    case SCHEMA_RATE: err = money_parse_ppm(text, MAX_PPM, &out->integer); break;
    case SCHEMA_DURATION: err = schema_read_duration(text, &out->integer); break;
    case SCHEMA_TIME: err = schema_read_time(slice_trim(text), &out->integer); break;
    case SCHEMA_UUID: check_uuid(checker, text, out); return;
    case SCHEMA_URL: check_url(checker, schema, text, out); return;
    case SCHEMA_SECRET: check_secret(checker, text, out); return;
    default: check_text(checker, schema, text, out); return;
    }
    if (err == GW_ETOOBIG)
        problem(checker, "range", "is too large");
    else if (err)
        problem(checker, "format", "%s", expectation(schema->kind));
    else
        check_range(checker, schema, out->integer);
}

static void check_integer(struct checker *checker, const struct schema *schema, int err,
                          int64_t value, struct schema_value *out)
{
    out->integer = value;
    if (err == GW_ETOOBIG || (err == 0 && (value > MAX_EXACT || value < -MAX_EXACT)))
        problem(checker, "range", "is too large");
    else if (err)
        wrong_type(checker, schema);
    else
        check_range(checker, schema, value);
}

// text: a JSON number.
static void check_number(struct checker *checker, const struct schema *schema, struct slice text,
                         struct schema_value *out)
{
    char copy[64];
    if (text.len >= sizeof copy) {
        problem(checker, "range", "has too many digits");
        return;
    }
    memcpy(copy, text.ptr, text.len);
    copy[text.len] = '\0';
    out->number = strtod(copy, NULL);
    if (!isfinite(out->number))
        problem(checker, "range", "is too large");
    else if (schema->has_min && out->number < schema->number_min)
        problem(checker, "range", "must be at least %.14g", schema->number_min);
    else if (schema->has_max && out->number > schema->number_max)
        problem(checker, "range", "must be at most %.14g", schema->number_max);
}

static bool read_boolean(struct slice text, bool *out)
{
    static const char *const words[] = {"false", "true", "0", "1", "no", "yes", "off", "on"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (slice_is_nocase(text, words[i])) {
            *out = i & 1;
            return true;
        }
    }
    return false;
}

// ---- documents

static void check_value(struct checker *checker, const struct schema *schema, yyjson_val *val,
                        struct schema_value *out);

static void *take(struct checker *checker, size_t count, size_t size)
{
    void *mem = arena_zalloc(checker->arena, (count ? count : 1) * size);
    if (!mem)
        checker->is_out_of_memory = true;
    return mem;
}

static void check_list(struct checker *checker, const struct schema *schema, yyjson_val *val,
                       struct schema_value *out)
{
    size_t count = yyjson_arr_size(val), before = problem_count(checker);
    check_count(checker, schema, count, "items");
    if (problem_count(checker) == before && count > (schema->has_max ? MAX_ITEMS_EVER : MAX_ITEMS))
        problem(checker, "length", "has too many items");
    if (problem_count(checker) > before)
        return;
    struct schema_value *items = take(checker, count, sizeof *items);
    if (!items)
        return;
    size_t i, max;
    yyjson_val *item;
    yyjson_arr_foreach(val, i, max, item)
    {
        size_t back = enter_index(checker, i);
        check_value(checker, schema->of, item, &items[i]);
        checker->path_len = back;
        if (problem_count(checker) >= SCHEMA_MAX_PROBLEMS || checker->is_out_of_memory)
            return;
    }
    out->items = items;
    out->count = count;
}

static void check_map(struct checker *checker, const struct schema *schema, yyjson_val *val,
                      struct schema_value *out)
{
    size_t count = yyjson_obj_size(val), before = problem_count(checker);
    check_count(checker, schema, count, "entries");
    if (problem_count(checker) == before &&
        count > (schema->has_max ? MAX_ITEMS_EVER : MAX_MEMBERS))
        problem(checker, "length", "has too many entries");
    if (problem_count(checker) > before)
        return;
    struct schema_member *members = take(checker, count, sizeof *members);
    if (!members)
        return;
    size_t i, max;
    yyjson_val *key, *item;
    yyjson_obj_foreach(val, i, max, key, item)
    {
        members[i].name = json_string_slice(key);
        size_t back = enter(checker, members[i].name);
        check_value(checker, schema->of, item, &members[i].value);
        checker->path_len = back;
        if (problem_count(checker) >= SCHEMA_MAX_PROBLEMS || checker->is_out_of_memory)
            return;
    }
    out->members = members;
    out->count = count;
}

static size_t field_index(const struct schema *record, struct slice name)
{
    for (size_t i = 0; i < record->field_count; i++)
        if (slice_eq(record->fields[i].name, name))
            return i;
    return SIZE_MAX;
}

static void unknown_field(struct checker *checker, const struct schema *record, struct slice name)
{
    size_t back = enter(checker, name);
    struct slice near = schema_suggest(record, name);
    if (near.len)
        problem(checker, "unknown", "is not a known field (did you mean '%.*s'?)", SLICE_FMT(near));
    else
        problem(checker, "unknown", "is not a known field");
    checker->path_len = back;
}

// A field that was not given.
static void absent_field(struct checker *checker, const struct schema_field *field,
                         struct schema_member *members, size_t *count)
{
    const struct schema *schema = field->schema;
    if (schema->default_value) {
        members[(*count)++] = (struct schema_member){field->name, *schema->default_value};
    } else if (!schema->is_optional) {
        size_t back = enter(checker, field->name);
        problem(checker, "missing", "is required");
        checker->path_len = back;
    }
}

static void check_record(struct checker *checker, const struct schema *schema, yyjson_val *val,
                         struct schema_value *out)
{
    struct schema_member *members = take(checker, schema->field_count, sizeof *members);
    yyjson_val **found = take(checker, schema->field_count, sizeof *found);
    if (!members || !found)
        return;
    size_t i, max, count = 0;
    yyjson_val *key, *item;
    yyjson_obj_foreach(val, i, max, key, item)
    {
        struct slice name = json_string_slice(key);
        size_t at = field_index(schema, name);
        if (at == SIZE_MAX) {
            unknown_field(checker, schema, name);
        } else if (found[at]) {
            size_t back = enter(checker, name);
            problem(checker, "json", "is given more than once");
            checker->path_len = back;
        } else {
            found[at] = item;
        }
        if (problem_count(checker) >= SCHEMA_MAX_PROBLEMS)
            return;
    }
    for (i = 0; i < schema->field_count; i++) {
        const struct schema_field *field = &schema->fields[i];
        if (!found[i]) {
            absent_field(checker, field, members, &count);
            continue;
        }
        size_t back = enter(checker, field->name);
        members[count].name = field->name;
        check_value(checker, field->schema, found[i], &members[count++].value);
        checker->path_len = back;
    }
    out->members = members;
    out->count = count;
}

static void check_value(struct checker *checker, const struct schema *schema, yyjson_val *val,
                        struct schema_value *out)
{
    *out = (struct schema_value){.schema = schema};
    if (yyjson_is_null(val) && schema->kind != SCHEMA_ANY) {
        out->is_null = true;
        if (!schema->is_nullable)
            problem(checker, "type", "must not be null");
        return;
    }
    struct slice number = json_number_text(val), text = json_string_slice(val);
    bool is_string = yyjson_is_str(val), is_number = number.len > 0;
    int64_t whole = 0;
    bool fits;
    switch (schema->kind) {
    case SCHEMA_ANY: fits = true; break;
    case SCHEMA_LIST: fits = yyjson_is_arr(val); break;
    case SCHEMA_RECORD:
    case SCHEMA_MAP: fits = yyjson_is_obj(val); break;
    case SCHEMA_BOOLEAN: fits = yyjson_is_bool(val); break;
    case SCHEMA_INTEGER:
    case SCHEMA_NUMBER: fits = is_number; break;
    case SCHEMA_DECIMAL:
    case SCHEMA_RATE:
    case SCHEMA_DURATION: fits = is_number || is_string; break;
    default: fits = is_string;
    }
    if (!fits) {
        wrong_type(checker, schema);
        return;
    }
    switch (schema->kind) {
    case SCHEMA_ANY: out->any = val; break;
    case SCHEMA_LIST: check_list(checker, schema, val, out); break;
    case SCHEMA_RECORD: check_record(checker, schema, val, out); break;
    case SCHEMA_MAP: check_map(checker, schema, val, out); break;
    case SCHEMA_BOOLEAN: out->is_true = yyjson_get_bool(val); break;
    case SCHEMA_INTEGER: {
        int err = json_get_i64(val, &whole);
        check_integer(checker, schema, err, whole, out);
        break;
    }
    case SCHEMA_NUMBER: check_number(checker, schema, number, out); break;
    default: check_written(checker, schema, is_number ? number : text, out);
    }
}

static int finish(struct checker *checker)
{
    if (checker->is_out_of_memory)
        return GW_ENOMEM;
    return checker->result->problem_count ? GW_EINVAL : 0;
}

int schema_check(const struct schema *schema, yyjson_val *document, const char *prefix,
                 struct arena *arena, struct schema_result *result)
{
    *result = (struct schema_result){.problem_count = 0};
    struct checker checker = {.arena = arena, .result = result};
    enter(&checker, slice_str(prefix));
    if (document)
        check_value(&checker, schema, document, &result->value);
    else
        problem(&checker, "missing", "is required");
    return finish(&checker);
}

// ---- texts

static bool is_json_number(struct slice text)
{
    size_t i = text.len && text.ptr[0] == '-', digits = 0;
    for (; i < text.len && isdigit((unsigned char)text.ptr[i]); i++)
        digits++;
    if (i < text.len && text.ptr[i] == '.')
        for (i++; i < text.len && isdigit((unsigned char)text.ptr[i]); i++)
            digits++;
    if (digits && i < text.len && (text.ptr[i] == 'e' || text.ptr[i] == 'E')) {
        i++;
        if (i < text.len && (text.ptr[i] == '+' || text.ptr[i] == '-'))
            i++;
        size_t before = i;
        while (i < text.len && isdigit((unsigned char)text.ptr[i]))
            i++;
        digits = i > before;
    }
    return digits && i == text.len;
}

static void check_pair(struct checker *checker, const struct schema *schema, struct slice text,
                       struct schema_value *out)
{
    *out = (struct schema_value){.schema = schema};
    if (!schema_is_utf8(text)) {
        problem(checker, "format", "is not UTF-8");
        return;
    }
    if (text.len == 0 && schema->is_nullable && schema->kind != SCHEMA_TEXT) {
        out->is_null = true;
        return;
    }
    switch (schema->kind) {
    case SCHEMA_BOOLEAN:
        if (!read_boolean(text, &out->is_true))
            wrong_type(checker, schema);
        break;
    case SCHEMA_INTEGER: {
        unsigned long long magnitude = 0;
        bool is_negative = slice_starts(text, "-");
        int err = slice_to_u64(slice_from(text, is_negative), MAX_EXACT + 1, &magnitude);
        check_integer(checker, schema, err, is_negative ? -(int64_t)magnitude : (int64_t)magnitude,
                      out);
        break;
    }
    case SCHEMA_NUMBER:
        if (is_json_number(text))
            check_number(checker, schema, text, out);
        else
            wrong_type(checker, schema);
        break;
    case SCHEMA_LIST:
    case SCHEMA_RECORD:
    case SCHEMA_MAP: wrong_type(checker, schema); break;
    case SCHEMA_ANY: out->text = text; break;
    default: check_written(checker, schema, text, out);
    }
}

static void check_repeated(struct checker *checker, const struct schema *schema,
                           const struct schema_pair *pairs, size_t count, struct slice name,
                           struct schema_value *out)
{
    *out = (struct schema_value){.schema = schema};
    struct schema_value *items = take(checker, count, sizeof *items);
    size_t used = 0;
    for (size_t i = 0; i < count && items; i++) {
        if (!slice_eq(pairs[i].name, name))
            continue;
        size_t back = enter_index(checker, used);
        check_pair(checker, schema->of, pairs[i].text, &items[used++]);
        checker->path_len = back;
    }
    check_count(checker, schema, used, "items");
    out->items = items;
    out->count = used;
}

int schema_check_pairs(const struct schema *record, const struct schema_pair *pairs, size_t count,
                       const char *prefix, struct arena *arena, struct schema_result *result)
{
    *result = (struct schema_result){.problem_count = 0};
    struct checker checker = {.arena = arena, .result = result};
    enter(&checker, slice_str(prefix));
    result->value.schema = record;
    struct schema_member *members = take(&checker, record->field_count, sizeof *members);
    if (!members || gw_unexpected(record->kind != SCHEMA_RECORD))
        return members ? GW_EINTERNAL : GW_ENOMEM;
    for (size_t i = 0; i < count; i++)
        if (field_index(record, pairs[i].name) == SIZE_MAX)
            unknown_field(&checker, record, pairs[i].name);
    size_t used = 0;
    for (size_t f = 0; f < record->field_count; f++) {
        const struct schema_field *field = &record->fields[f];
        size_t seen = 0, last = 0;
        for (size_t i = 0; i < count; i++) {
            if (slice_eq(pairs[i].name, field->name)) {
                last = i;
                seen++;
            }
        }
        if (seen == 0) {
            absent_field(&checker, field, members, &used);
            continue;
        }
        size_t back = enter(&checker, field->name);
        struct schema_member *member = &members[used++];
        member->name = field->name;
        if (field->schema->kind == SCHEMA_LIST)
            check_repeated(&checker, field->schema, pairs, count, field->name, &member->value);
        else if (seen > 1)
            problem(&checker, "type", "is given more than once");
        else
            check_pair(&checker, field->schema, pairs[last].text, &member->value);
        checker.path_len = back;
    }
    result->value.members = members;
    result->value.count = used;
    return finish(&checker);
}

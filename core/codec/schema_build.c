// Building schemas: names of kinds, the last checks, defaults.
#include "codec/schema.h"
#include <stdio.h>

static const char *const kind_names[SCHEMA_KIND_COUNT] = {
    "text", "integer", "number", "boolean", "decimal", "rate", "duration", "time",
    "uuid", "url",     "secret", "list",    "record",  "map",  "any",
};

const char *schema_kind_name(enum schema_kind kind)
{
    return kind_names[kind];
}

int schema_kind_find(struct slice name)
{
    for (int i = 0; i < SCHEMA_KIND_COUNT; i++)
        if (slice_is(name, kind_names[i]))
            return i;
    return GW_ENOTFOUND;
}

struct slice schema_suggest(const struct schema *record, struct slice name)
{
    struct slice best = SLICE_LIT("");
    size_t best_distance = name.len / 3 + 1;
    for (size_t i = 0; i < record->field_count; i++) {
        size_t distance = schema_distance(name, record->fields[i].name);
        if (distance < best_distance) {
            best_distance = distance;
            best = record->fields[i].name;
        }
    }
    return best;
}

// ---- building

static void free_doc(void *arg)
{
    json_doc_free(arg);
}

static int read_default(struct schema *schema, struct arena *arena, char *why, size_t why_size)
{
    struct json_doc *doc = NULL;
    const char *error = NULL;
    size_t at = 0;
    // An empty Lua table does not say whether it is a list.
    if (schema->kind == SCHEMA_LIST && slice_is(schema->default_json, "{}"))
        schema->default_json = SLICE_LIT("[]");
    int err = json_parse(schema->default_json, 1 << 20, &doc, &error, &at);
    if (err) {
        snprintf(why, why_size, "the default cannot be read: %s", error ? error : "too large");
        return err;
    }
    err = arena_on_free(arena, free_doc, doc);
    if (err) {
        json_doc_free(doc);
        return err;
    }
    struct schema_result *result = arena_zalloc(arena, sizeof *result);
    if (!result)
        return GW_ENOMEM;
    err = schema_check(schema, json_root(doc), "", arena, result);
    if (err == GW_EINVAL) {
        struct slice path = result->problems[0].path;
        snprintf(why, why_size, "the default%s%.*s %.*s", path.len ? " " : "",
                 (int)(path.len > 40 ? 40 : path.len), path.ptr,
                 (int)(result->problems[0].message.len > 80 ? 80 : result->problems[0].message.len),
                 result->problems[0].message.ptr);
    }
    schema->default_value = &result->value;
    return err;
}

int schema_seal(struct schema *schema, struct arena *arena, char *why, size_t why_size)
{
    unsigned below = schema->of ? schema->of->depth : 0;
    for (size_t i = 0; i < schema->field_count; i++) {
        if (schema->fields[i].schema->depth > below)
            below = schema->fields[i].schema->depth;
        for (size_t k = 0; k < i; k++) {
            if (slice_eq(schema->fields[i].name, schema->fields[k].name)) {
                snprintf(why, why_size, "the field '%.*s' is there twice",
                         SLICE_FMT(schema->fields[i].name));
                return GW_EINVAL;
            }
        }
    }
    schema->depth = below + 1;
    const char *wrong = NULL;
    bool is_number = schema->kind == SCHEMA_NUMBER;
    bool has_count = schema->kind == SCHEMA_TEXT || schema->kind == SCHEMA_LIST ||
                     schema->kind == SCHEMA_MAP || schema->kind == SCHEMA_URL;
    if (schema->depth > SCHEMA_MAX_DEPTH)
        wrong = "nested too deep";
    else if (schema->field_count > SCHEMA_MAX_FIELDS)
        wrong = "too many fields";
    else if ((schema->kind == SCHEMA_LIST || schema->kind == SCHEMA_MAP) && !schema->of)
        wrong = "needs of = a schema";
    else if (schema->has_min && schema->has_max &&
             (is_number ? schema->number_min > schema->number_max : schema->min > schema->max))
        wrong = "min is above max";
    else if (has_count &&
             ((schema->has_min && schema->min < 0) || (schema->has_max && schema->max < 0)))
        wrong = "a length cannot be negative";
    if (wrong) {
        snprintf(why, why_size, "%s", wrong);
        return GW_EINVAL;
    }
    return schema->default_json.ptr ? read_default(schema, arena, why, why_size) : 0;
}

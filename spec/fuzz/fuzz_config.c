// Schema validation of any JSON and of any query text, and `.env` parsing. The first byte chooses.
// A document that passes has to pass again in its normalised form.
#include "codec/schema.h"
#include "script/confload_env.h"
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct arena *schemas;
static const struct schema *root;

static struct schema *make(enum schema_kind kind, bool is_optional)
{
    struct schema *schema = arena_zalloc(schemas, sizeof *schema);
    if (!schema)
        abort();
    schema->kind = kind;
    schema->is_optional = is_optional;
    return schema;
}

static const struct schema *seal(struct schema *schema)
{
    char why[200] = "";
    if (schema_seal(schema, schemas, why, sizeof why) != 0) {
        fprintf(stderr, "%s\n", why);
        abort();
    }
    return schema;
}

// One field per kind, named a, b, c… in the order of the kinds.
static void build(void)
{
    static const char names[] = "abcdefghijklmno";
    static struct schema_field fields[SCHEMA_KIND_COUNT];
    const char *why;
    schemas = arena_new(4096);
    for (int i = 0; i < SCHEMA_KIND_COUNT; i++) {
        struct schema *schema = make((enum schema_kind)i, true);
        if (i == SCHEMA_TEXT) {
            schema->is_trimmed = schema->is_empty_null = schema->is_nullable = true;
            schema->has_max = true;
            schema->max = 64;
            if (schema_set_pattern(schema, SLICE_LIT("[a-z]+(-[0-9]{1,3})*"), schemas, &why) != 0)
                abort();
        } else if (i == SCHEMA_INTEGER) {
            schema->default_json = SLICE_LIT("5");
        } else if (i == SCHEMA_LIST) {
            schema->of = seal(make(SCHEMA_TIME, false));
        } else if (i == SCHEMA_MAP) {
            struct schema *list = make(SCHEMA_LIST, false);
            list->of = seal(make(SCHEMA_DECIMAL, false));
            schema->of = seal(list);
        } else if (i == SCHEMA_RECORD) {
            static struct schema_field inner[1];
            inner[0] = (struct schema_field){SLICE_LIT("x"), seal(make(SCHEMA_BOOLEAN, false))};
            schema->fields = inner;
            schema->field_count = 1;
        }
        fields[i] = (struct schema_field){slice_of(&names[i], 1), seal(schema)};
    }
    struct schema *record = make(SCHEMA_RECORD, false);
    record->fields = fields;
    record->field_count = SCHEMA_KIND_COUNT;
    root = seal(record);
}

static void check_problems(const struct schema_result *result, int err)
{
    if ((err == GW_EINVAL) != (result->problem_count > 0) ||
        result->problem_count > SCHEMA_MAX_PROBLEMS)
        abort();
}

static void check_document(struct slice text, struct arena *arena)
{
    struct json_doc *doc = NULL, *again = NULL;
    struct schema_result result, second;
    struct buf normal = BUF_INIT(0), twice = BUF_INIT(0);
    struct json_out out;
    const char *why;
    size_t at;
    if (json_parse(text, (size_t)4 << 20, &doc, &why, &at) != 0)
        return;
    int err = schema_check(root, json_root(doc), "body", arena, &result);
    if (err != GW_ENOMEM)
        check_problems(&result, err);
    if (err == 0) {
        json_begin(&out, &normal);
        schema_write_value(&result.value, &out);
        if (json_end(&out) == 0) {
            if (json_parse(buf_slice(&normal), (size_t)16 << 20, &again, &why, &at) != 0 ||
                schema_check(root, json_root(again), "body", arena, &second) != 0) {
                fprintf(stderr, "%.*s\n", SLICE_FMT(buf_slice(&normal)));
                abort();
            }
            json_begin(&out, &twice);
            schema_write_value(&second.value, &out);
            if (json_end(&out) != 0 || !slice_eq(buf_slice(&normal), buf_slice(&twice)))
                abort();
        }
    }
    json_doc_free(doc);
    json_doc_free(again);
    buf_free(&normal);
    buf_free(&twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > 65536)
        return 0;
    if (!root)
        build();
    struct arena *arena = arena_new(4096);
    struct slice text = slice_of((const char *)data + 1, size - 1);
    struct schema_result result;
    struct env_file env;
    struct buf problems = BUF_INIT(1 << 20);
    switch (data[0] % 3) {
    case 0: check_document(text, arena); break;
    case 1: {
        int err = schema_check_query(root, text, "query", arena, &result);
        if (err != GW_ENOMEM)
            check_problems(&result, err);
        break;
    }
    default:
        if (env_file_parse(text, ".env", arena, &env, &problems) == 0 && problems.len)
            abort();
        for (size_t i = 0; i < env.count; i++)
            if (env.pairs[i].name.len == 0 ||
                memchr(env.pairs[i].name.ptr, '=', env.pairs[i].name.len))
                abort();
    }
    buf_free(&problems);
    arena_free(arena);
    return 0;
}

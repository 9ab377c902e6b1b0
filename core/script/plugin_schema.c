// schema.* tables of Lua to struct schema. lua/schema.lua has checked the options' types at the
// plugin's own line; here come the things only C knows: patterns, amounts, defaults.
#include "base/money.h"
#include "codec/schema_text.h"
#include "script/lua_json.h"
#include "script/plugin.h"
#include <math.h>
#include <stdlib.h>

#define MAX_COMPILE_DEPTH 20
#define MAX_CHOICES 1000

struct compiler {
    lua_State *L;
    struct arena *arena;
    char *why;
    size_t why_size;
};

// The field of the table at index as text in the arena; ptr NULL when absent. Numbers count.
static int read_text(struct compiler *compiler, int index, const char *name, struct slice *out)
{
    size_t len = 0;
    lua_pushstring(compiler->L, name);
    lua_rawget(compiler->L, index);
    const char *text = lua_tolstring(compiler->L, -1, &len);
    *out = SLICE_NONE;
    if (text)
        *out = arena_copy(compiler->arena, slice_of(text, len));
    lua_pop(compiler->L, 1);
    return text && !out->ptr ? GW_ENOMEM : 0;
}

static bool read_flag(struct compiler *compiler, int index, const char *name)
{
    lua_pushstring(compiler->L, name);
    lua_rawget(compiler->L, index);
    bool is_set = lua_toboolean(compiler->L, -1);
    lua_pop(compiler->L, 1);
    return is_set;
}

static int complain(struct compiler *compiler, int index, const char *what, const char *detail)
{
    struct slice at = SLICE_NONE;
    (void)read_text(compiler, index, "at", &at);
    snprintf(compiler->why, compiler->why_size, "%.*s%s%s", at.ptr ? (int)at.len : 0,
             at.ptr ? at.ptr : "", what, detail);
    return GW_EINVAL;
}

static int read_limit_text(const struct schema *schema, struct slice text, int64_t *out)
{
    switch (schema->kind) {
    case SCHEMA_DECIMAL: return money_parse(text, out);
    case SCHEMA_RATE: return money_parse_ppm(text, INT64_C(1000000000000), out);
    case SCHEMA_DURATION: return schema_read_duration(text, out);
    case SCHEMA_TIME: return schema_read_time(text, out);
    default: return GW_EINVAL;
    }
}

static int read_limit(struct compiler *compiler, int index, struct schema *schema, const char *name,
                      bool *has, int64_t *limit, double *number)
{
    lua_pushstring(compiler->L, name);
    lua_rawget(compiler->L, index);
    int type = lua_type(compiler->L, -1);
    double value = lua_tonumber(compiler->L, -1);
    lua_pop(compiler->L, 1);
    if (type == LUA_TNIL)
        return 0;
    *has = true;
    *number = value;
    if (schema->kind == SCHEMA_NUMBER)
        return 0;
    struct slice text;
    int err = read_text(compiler, index, name, &text);
    if (err)
        return err;
    if (schema->kind == SCHEMA_DECIMAL || schema->kind == SCHEMA_RATE ||
        schema->kind == SCHEMA_DURATION || schema->kind == SCHEMA_TIME) {
        if (read_limit_text(schema, text, limit) != 0)
            return complain(compiler, index, " cannot read the limit ", name);
        return 0;
    }
    if (value != floor(value) || fabs(value) > 9007199254740992.0)
        return complain(compiler, index, " must be a whole number: ", name);
    *limit = (int64_t)value;
    return 0;
}

static int read_choices(struct compiler *compiler, int index, struct schema *schema)
{
    lua_State *L = compiler->L;
    int err = 0;
    lua_pushliteral(L, "enum");
    lua_rawget(L, index);
    size_t count = lua_istable(L, -1) ? lua_objlen(L, -1) : 0;
    if (count > MAX_CHOICES)
        err = complain(compiler, index, " enum is too long", "");
    struct slice *choices =
        err ? NULL : arena_zalloc(compiler->arena, (count + 1) * sizeof *choices);
    if (!choices && !err)
        err = GW_ENOMEM;
    for (size_t i = 0; i < count && !err; i++) {
        size_t len = 0;
        lua_rawgeti(L, -1, (int)i + 1);
        const char *text = lua_tolstring(L, -1, &len);
        choices[i] = arena_copy(compiler->arena, slice_of(text ? text : "", text ? len : 0));
        if (!choices[i].ptr)
            err = GW_ENOMEM;
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    schema->choices = choices;
    schema->choice_count = err ? 0 : count;
    return err;
}

static int read_default(struct compiler *compiler, int index, struct schema *schema)
{
    lua_State *L = compiler->L;
    lua_pushliteral(L, "default");
    lua_rawget(L, index);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        return 0;
    }
    struct buf *text = lua_env_buffer(L, 65536);
    lua_json_encode(L, lua_gettop(L) - 1, text);
    schema->default_json = arena_copy(compiler->arena, buf_slice(text));
    buf_free(text);
    lua_pop(L, 2);
    return schema->default_json.ptr ? 0 : GW_ENOMEM;
}

static int compile(struct compiler *compiler, int index, int depth, const struct schema **out);

static int by_name(const void *a, const void *b)
{
    const struct schema_field *x = a, *y = b;
    size_t len = x->name.len < y->name.len ? x->name.len : y->name.len;
    int order = memcmp(x->name.ptr, y->name.ptr, len);
    return order ? order : (x->name.len > y->name.len) - (x->name.len < y->name.len);
}

// Lua's tables have no order: fields stand by name.
static int compile_fields(struct compiler *compiler, int index, struct schema *schema, int depth)
{
    lua_State *L = compiler->L;
    int err = 0;
    size_t count = 0, used = 0;
    lua_pushliteral(L, "fields");
    lua_rawget(L, index);
    int fields_at = lua_gettop(L);
    if (!lua_istable(L, fields_at)) {
        lua_pop(L, 1);
        return complain(compiler, index, " a record needs fields", "");
    }
    for (lua_pushnil(L); lua_next(L, fields_at); lua_pop(L, 1))
        count++;
    struct schema_field *fields = count <= SCHEMA_MAX_FIELDS
                                      ? arena_zalloc(compiler->arena, (count + 1) * sizeof *fields)
                                      : NULL;
    if (!fields) {
        lua_pop(L, 1);
        return count > SCHEMA_MAX_FIELDS ? complain(compiler, index, " too many fields", "")
                                         : GW_ENOMEM;
    }
    for (lua_pushnil(L); !err && lua_next(L, fields_at); lua_pop(L, 1)) {
        size_t len = 0;
        if (lua_type(L, -2) != LUA_TSTRING) {
            err = complain(compiler, index, " a field's name must be a text", "");
            continue;
        }
        const char *name = lua_tolstring(L, -2, &len);
        fields[used].name = arena_copy(compiler->arena, slice_of(name, len));
        err = fields[used].name.ptr
                  ? compile(compiler, lua_gettop(L), depth + 1, &fields[used].schema)
                  : GW_ENOMEM;
        used++;
    }
    lua_settop(L, fields_at - 1);
    if (err)
        return err;
    qsort(fields, used, sizeof *fields, by_name);
    schema->fields = fields;
    schema->field_count = used;
    return 0;
}

static int compile_parts(struct compiler *compiler, int index, struct schema *schema, int depth)
{
    if (schema->kind == SCHEMA_RECORD)
        return compile_fields(compiler, index, schema, depth);
    if (schema->kind != SCHEMA_LIST && schema->kind != SCHEMA_MAP)
        return 0;
    lua_pushliteral(compiler->L, "of");
    lua_rawget(compiler->L, index);
    int err = compile(compiler, lua_gettop(compiler->L), depth + 1, &schema->of);
    lua_pop(compiler->L, 1);
    return err;
}

static int read_pattern(struct compiler *compiler, int index, struct schema *schema)
{
    const char *why = NULL;
    struct slice pattern;
    int err = read_text(compiler, index, "pattern", &pattern);
    if (err || !pattern.ptr)
        return err;
    err = schema_set_pattern(schema, pattern, compiler->arena, &why);
    return err == GW_EINVAL ? complain(compiler, index, " pattern: ", why) : err;
}

static int compile(struct compiler *compiler, int index, int depth, const struct schema **out)
{
    lua_State *L = compiler->L;
    luaL_checkstack(L, 12, "schema");
    if (!lua_istable(L, index)) {
        snprintf(compiler->why, compiler->why_size, "not a schema");
        return GW_EINVAL;
    }
    if (depth > MAX_COMPILE_DEPTH)
        return complain(compiler, index, " nested too deep", "");
    struct slice kind;
    struct schema *schema = arena_zalloc(compiler->arena, sizeof *schema);
    int err = schema ? read_text(compiler, index, "__schema", &kind) : GW_ENOMEM;
    if (err)
        return err;
    int found = kind.ptr ? schema_kind_find(kind) : GW_ENOTFOUND;
    if (found < 0) {
        snprintf(compiler->why, compiler->why_size, "not a schema");
        return GW_EINVAL;
    }
    schema->kind = (enum schema_kind)found;
    schema->is_optional = read_flag(compiler, index, "optional");
    schema->is_nullable = read_flag(compiler, index, "nullable");
    schema->is_trimmed = read_flag(compiler, index, "trim");
    schema->is_empty_null = read_flag(compiler, index, "empty_null");
    err = read_text(compiler, index, "about", &schema->about);
    if (!err)
        err = read_limit(compiler, index, schema, "min", &schema->has_min, &schema->min,
                         &schema->number_min);
    if (!err)
        err = read_limit(compiler, index, schema, "max", &schema->has_max, &schema->max,
                         &schema->number_max);
    if (!err)
        err = read_choices(compiler, index, schema);
    if (!err)
        err = read_pattern(compiler, index, schema);
    if (!err)
        err = compile_parts(compiler, index, schema, depth);
    if (!err)
        err = read_default(compiler, index, schema);
    if (!err) {
        char why[200];
        err = schema_seal(schema, compiler->arena, why, sizeof why);
        if (err == GW_EINVAL)
            err = complain(compiler, index, " ", why);
    }
    *out = schema;
    return err;
}

int plugin_compile_schema(lua_State *L, int index, struct arena *arena, const struct schema **out,
                          char *why, size_t why_size)
{
    struct compiler compiler = {L, arena, why, why_size};
    if (index < 0)
        index = lua_gettop(L) + 1 + index;
    why[0] = '\0';
    return compile(&compiler, index, 0, out);
}

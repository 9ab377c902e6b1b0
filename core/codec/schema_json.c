// Schemas and values as JSON: the normalised document, and JSON Schema 2020-12 for OpenAPI.
#include "base/money.h"
#include "codec/schema.h"
#include "codec/schema_text.h"
#include <stdio.h>

// A parsed value as it was; numbers keep their source text.
static void write_any(yyjson_val *val, struct json_out *out)
{
    size_t i, max;
    yyjson_val *key, *item;
    switch (yyjson_get_type(val)) {
    case YYJSON_TYPE_BOOL: json_bool(out, yyjson_get_bool(val)); break;
    case YYJSON_TYPE_RAW: json_raw(out, json_number_text(val)); break;
    case YYJSON_TYPE_STR: json_text(out, json_string_slice(val)); break;
    case YYJSON_TYPE_ARR:
        json_array(out);
        yyjson_arr_foreach(val, i, max, item) write_any(item, out);
        json_array_end(out);
        break;
    case YYJSON_TYPE_OBJ:
        json_object(out);
        yyjson_obj_foreach(val, i, max, key, item)
        {
            json_key_slice(out, json_string_slice(key));
            write_any(item, out);
        }
        json_object_end(out);
        break;
    default: json_null(out);
    }
}

static void write_scaled(int64_t value, int64_t scale, struct json_out *out)
{
    json_money(out, value * scale); // ppm and milliseconds as decimals
}

void schema_write_value(const struct schema_value *value, struct json_out *out)
{
    char text[192];
    size_t len;
    if (value->is_null || !value->schema) {
        json_null(out);
        return;
    }
    switch (value->schema->kind) {
    case SCHEMA_TEXT:
    case SCHEMA_UUID:
    case SCHEMA_URL: json_text(out, value->text); break;
    case SCHEMA_SECRET:
        len = (size_t)snprintf(text, sizeof text, "$%.*s", SLICE_FMT(value->text));
        json_text(out, slice_of(text, len < sizeof text ? len : sizeof text - 1));
        break;
    case SCHEMA_INTEGER: json_i64(out, value->integer); break;
    case SCHEMA_NUMBER: json_double(out, value->number); break;
    case SCHEMA_BOOLEAN: json_bool(out, value->is_true); break;
    case SCHEMA_DECIMAL: json_money(out, value->integer); break;
    case SCHEMA_RATE: write_scaled(value->integer, 1000, out); break;
    case SCHEMA_DURATION: write_scaled(value->integer, 1000000, out); break;
    case SCHEMA_TIME:
        len = schema_format_time(value->integer, text, sizeof text);
        json_text(out, slice_of(text, len));
        break;
    case SCHEMA_LIST:
        json_array(out);
        for (size_t i = 0; i < value->count; i++)
            schema_write_value(&value->items[i], out);
        json_array_end(out);
        break;
    case SCHEMA_RECORD:
    case SCHEMA_MAP:
        json_object(out);
        for (size_t i = 0; i < value->count; i++) {
            json_key_slice(out, value->members[i].name);
            schema_write_value(&value->members[i].value, out);
        }
        json_object_end(out);
        break;
    default:
        if (value->any)
            write_any(value->any, out);
        else
            json_text(out, value->text);
    }
}

// ---- JSON Schema

static void write_type(struct json_out *out, const char *type, bool is_nullable)
{
    json_key(out, "type");
    if (is_nullable) {
        json_array(out);
        json_str(out, type);
        json_str(out, "null");
        json_array_end(out);
    } else {
        json_str(out, type);
    }
}

static void write_limits(const struct schema *schema, const char *min, const char *max,
                         struct json_out *out)
{
    if (schema->has_min) {
        json_key(out, min);
        json_i64(out, schema->min);
    }
    if (schema->has_max) {
        json_key(out, max);
        json_i64(out, schema->max);
    }
}

static void write_decimal_limits(const struct schema *schema, int64_t scale, struct json_out *out)
{
    if (schema->has_min || schema->kind != SCHEMA_DECIMAL) {
        json_key(out, "minimum");
        json_money(out, schema->has_min ? schema->min * scale : 0);
    }
    if (schema->has_max) {
        json_key(out, "maximum");
        json_money(out, schema->max * scale);
    }
}

static void write_text(const struct schema *schema, struct json_out *out)
{
    bool is_null_too = schema->is_nullable || schema->is_empty_null;
    write_type(out, "string", is_null_too);
    write_limits(schema, "minLength", "maxLength", out);
    if (schema->choice_count) {
        json_key(out, "enum");
        json_array(out);
        for (size_t i = 0; i < schema->choice_count; i++)
            json_text(out, schema->choices[i]);
        if (is_null_too)
            json_null(out);
        json_array_end(out);
    }
    if (schema->pattern.len) {
        char text[SCHEMA_MAX_PATTERN + 8];
        int len = snprintf(text, sizeof text, "^(?:%.*s)$", SLICE_FMT(schema->pattern));
        json_key(out, "pattern");
        json_text(out, slice_of(text, (size_t)len));
    }
}

static void write_format(const struct schema *schema, const char *format, struct json_out *out)
{
    write_type(out, "string", schema->is_nullable);
    json_key(out, "format");
    json_str(out, format);
}

// A number, or its exact decimal as a text.
static void write_decimal(const struct schema *schema, int64_t scale, const char *pattern,
                          struct json_out *out)
{
    json_key(out, "type");
    json_array(out);
    json_str(out, "number");
    json_str(out, "string");
    if (schema->is_nullable)
        json_str(out, "null");
    json_array_end(out);
    write_decimal_limits(schema, scale, out);
    json_key(out, "pattern");
    json_str(out, pattern);
}

static void write_record(const struct schema *schema, struct json_out *out)
{
    bool has_required = false;
    write_type(out, "object", schema->is_nullable);
    json_key(out, "properties");
    json_object(out);
    for (size_t i = 0; i < schema->field_count; i++) {
        const struct schema *field = schema->fields[i].schema;
        json_key_slice(out, schema->fields[i].name);
        schema_write_json_schema(field, out);
        has_required = has_required || (!field->is_optional && !field->default_value);
    }
    json_object_end(out);
    if (has_required) {
        json_key(out, "required");
        json_array(out);
        for (size_t i = 0; i < schema->field_count; i++) {
            const struct schema *field = schema->fields[i].schema;
            if (!field->is_optional && !field->default_value)
                json_text(out, schema->fields[i].name);
        }
        json_array_end(out);
    }
    json_key(out, "additionalProperties");
    json_bool(out, false);
}

void schema_write_json_schema(const struct schema *schema, struct json_out *out)
{
    json_object(out);
    switch (schema->kind) {
    case SCHEMA_TEXT: write_text(schema, out); break;
    case SCHEMA_INTEGER:
        write_type(out, "integer", schema->is_nullable);
        write_limits(schema, "minimum", "maximum", out);
        break;
    case SCHEMA_NUMBER:
        write_type(out, "number", schema->is_nullable);
        if (schema->has_min) {
            json_key(out, "minimum");
            json_double(out, schema->number_min);
        }
        if (schema->has_max) {
            json_key(out, "maximum");
            json_double(out, schema->number_max);
        }
        break;
    case SCHEMA_BOOLEAN: write_type(out, "boolean", schema->is_nullable); break;
    case SCHEMA_DECIMAL: write_decimal(schema, 1, "^-?[0-9]+(\\.[0-9]+)?$", out); break;
    case SCHEMA_RATE: write_decimal(schema, 1000, "^[0-9]+(\\.[0-9]+)?$", out); break;
    case SCHEMA_DURATION:
        write_decimal(schema, 1000000, "^[0-9]+(\\.[0-9]+)?(ms|s|m|h|d)?$", out);
        break;
    case SCHEMA_TIME: write_format(schema, "date-time", out); break;
    case SCHEMA_UUID: write_format(schema, "uuid", out); break;
    case SCHEMA_URL: write_format(schema, "uri", out); break;
    case SCHEMA_SECRET:
        write_type(out, "string", schema->is_nullable);
        json_key(out, "pattern");
        json_str(out, "^\\$[A-Z_][A-Z0-9_]*$");
        break;
    case SCHEMA_LIST:
        write_type(out, "array", schema->is_nullable);
        json_key(out, "items");
        schema_write_json_schema(schema->of, out);
        write_limits(schema, "minItems", "maxItems", out);
        break;
    case SCHEMA_MAP:
        write_type(out, "object", schema->is_nullable);
        json_key(out, "additionalProperties");
        schema_write_json_schema(schema->of, out);
        write_limits(schema, "minProperties", "maxProperties", out);
        break;
    case SCHEMA_RECORD: write_record(schema, out); break;
    default: break; // anything
    }
    if (schema->default_value) {
        json_key(out, "default");
        schema_write_value(schema->default_value, out);
    }
    if (schema->about.len) {
        json_key(out, "description");
        json_text(out, schema->about);
    }
    json_object_end(out);
}

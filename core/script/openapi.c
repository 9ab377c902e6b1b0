// The OpenAPI 3.1 document: the core's own routes from the table below, the plugins' from their
// declarations.
#include "codec/json.h"
#include "script/plugin.h"
#include <ctype.h>
#include <stdio.h>

static const struct {
    const char *path, *method, *id, *about, *auth; // auth: "key" or "none"
    bool has_body;
} core_routes[] = {
    {"/v1/chat/completions", "post", "chat_completions",
     "OpenAI Chat Completions; streams when `stream` is true.", "key", true},
    {"/v1/completions", "post", "completions", "OpenAI Completions.", "key", true},
    {"/v1/embeddings", "post", "embeddings", "OpenAI Embeddings.", "key", true},
    {"/v1/responses", "post", "responses", "OpenAI Responses; streams when `stream` is true.",
     "key", true},
    {"/v1/messages", "post", "messages", "Claude Messages; streams when `stream` is true.", "key",
     true},
    {"/v1/messages/count_tokens", "post", "count_tokens", "Claude token count of a request.", "key",
     true},
    {"/v1/models", "get", "list_models",
     "Models that the key may use, in the caller's dialect (Claude when `anthropic-version` is "
     "sent).",
     "key", false},
    {"/v1/models/{id}", "get", "get_model", "One model.", "key", false},
    {"/openapi.json", "get", "openapi", "This document.", "none", false},
};

static bool is_first(const struct plugin_set *set, size_t plugin, size_t route)
{
    struct slice path = set->defs[plugin].routes[route].path;
    for (size_t i = 0; i <= plugin; i++)
        for (size_t k = 0; k < (i == plugin ? route : set->defs[i].route_count); k++)
            if (slice_eq(set->defs[i].routes[k].path, path))
                return false;
    for (size_t i = 0; i < sizeof core_routes / sizeof core_routes[0]; i++)
        if (slice_is(path, core_routes[i].path))
            return false; // the core's come first and win
    return true;
}

static void write_security(struct json_out *out, bool needs_key, bool needs_admin)
{
    json_key(out, "security");
    json_array(out);
    if (needs_key || needs_admin) {
        json_object(out);
        json_key(out, needs_admin ? "admin" : "bearer");
        json_array(out);
        json_array_end(out);
        json_object_end(out);
    }
    if (needs_key) {
        json_object(out);
        json_key(out, "apiKey");
        json_array(out);
        json_array_end(out);
        json_object_end(out);
    }
    json_array_end(out);
}

static void write_description(struct json_out *out, const char *status, const char *about)
{
    json_key(out, status);
    json_object(out);
    json_key(out, "description");
    json_str(out, about);
    json_object_end(out);
}

static void write_parameter(struct json_out *out, const struct schema_field *field,
                            const char *where)
{
    json_object(out);
    json_key(out, "name");
    json_text(out, field->name);
    json_key(out, "in");
    json_str(out, where);
    bool is_path = strcmp(where, "path") == 0;
    if (is_path || (!field->schema->is_optional && !field->schema->default_value)) {
        json_key(out, "required");
        json_bool(out, true);
    }
    if (field->schema->about.len) {
        json_key(out, "description");
        json_text(out, field->schema->about);
    }
    json_key(out, "schema");
    schema_write_json_schema(field->schema, out);
    json_object_end(out);
}

static void write_json_body(struct json_out *out, const struct schema *schema)
{
    json_key(out, "requestBody");
    json_object(out);
    json_key(out, "required");
    json_bool(out, true);
    json_key(out, "content");
    json_object(out);
    json_key(out, "application/json");
    json_object(out);
    json_key(out, "schema");
    if (schema) {
        schema_write_json_schema(schema, out);
    } else {
        json_object(out);
        json_key(out, "type");
        json_str(out, "object");
        json_object_end(out);
    }
    json_object_end(out);
    json_object_end(out);
    json_object_end(out);
}

static void lower_key(struct json_out *out, struct slice method)
{
    char name[16];
    size_t len = method.len < sizeof name - 1 ? method.len : sizeof name - 1;
    for (size_t i = 0; i < len; i++)
        name[i] = (char)tolower((unsigned char)method.ptr[i]);
    json_key_slice(out, slice_of(name, len));
}

// "admin_post_admin_keys_uid"
static void write_operation_id(struct json_out *out, const struct plugin_def *def,
                               const struct plugin_route *route)
{
    char id[700];
    int len = snprintf(id, sizeof id, "%s_%.*s%.*s", def->name, SLICE_FMT(route->method_text),
                       SLICE_FMT(route->path));
    size_t used = 0;
    for (int i = 0; i < len && i < (int)sizeof id - 1; i++) {
        char c = (char)tolower((unsigned char)id[i]);
        if (!isalnum((unsigned char)c)) {
            if (used == 0 || id[used - 1] == '_' || i == len - 1)
                continue;
            c = '_';
        }
        id[used++] = c;
    }
    json_key(out, "operationId");
    json_text(out, slice_of(id, used));
}

static void write_route(struct json_out *out, const struct plugin_def *def,
                        const struct plugin_route *route)
{
    lower_key(out, route->method_text);
    json_object(out);
    write_operation_id(out, def, route);
    json_key(out, "tags");
    json_array(out);
    json_str(out, def->name);
    json_array_end(out);
    if (route->about.len) {
        json_key(out, "summary");
        json_text(out, route->about);
    }
    if (route->params || route->query) {
        json_key(out, "parameters");
        json_array(out);
        for (size_t i = 0; route->params && i < route->params->field_count; i++)
            write_parameter(out, &route->params->fields[i], "path");
        for (size_t i = 0; route->query && i < route->query->field_count; i++)
            write_parameter(out, &route->query->fields[i], "query");
        json_array_end(out);
    }
    if (route->body)
        write_json_body(out, route->body);
    json_key(out, "responses");
    if (route->responses_json.len) {
        json_raw(out, route->responses_json);
    } else {
        json_object(out);
        write_description(out, "200", "OK");
        if (route->params || route->query || route->body)
            write_description(out, "422", "The request does not fit its schema.");
        json_object_end(out);
    }
    write_security(out, route->auth == PLUGIN_AUTH_KEY || route->auth == PLUGIN_AUTH_USER,
                   route->auth == PLUGIN_AUTH_ADMIN || route->auth == PLUGIN_AUTH_FUNCTION);
    json_object_end(out);
}

// All methods of one path, whichever plugins they are of.
static void write_path(struct json_out *out, const struct plugin_set *set, struct slice path)
{
    for (size_t i = 0; i < set->count; i++)
        for (size_t k = 0; k < set->defs[i].route_count; k++)
            if (slice_eq(set->defs[i].routes[k].path, path))
                write_route(out, &set->defs[i], &set->defs[i].routes[k]);
}

static void write_core_routes(struct json_out *out)
{
    for (size_t i = 0; i < sizeof core_routes / sizeof core_routes[0]; i++) {
        json_key(out, core_routes[i].path);
        json_object(out);
        json_key(out, core_routes[i].method);
        json_object(out);
        json_key(out, "operationId");
        json_str(out, core_routes[i].id);
        json_key(out, "tags");
        json_array(out);
        json_str(out, "models");
        json_array_end(out);
        json_key(out, "summary");
        json_str(out, core_routes[i].about);
        if (strchr(core_routes[i].path, '{')) {
            json_key(out, "parameters");
            json_array(out);
            json_raw(out, SLICE_LIT("{\"name\":\"id\",\"in\":\"path\",\"required\":true,"
                                    "\"schema\":{\"type\":\"string\"}}"));
            json_array_end(out);
        }
        if (core_routes[i].has_body)
            write_json_body(out, NULL);
        json_key(out, "responses");
        json_object(out);
        write_description(out, "200", "OK");
        if (strcmp(core_routes[i].auth, "key") == 0)
            write_description(out, "default", "An error in the caller's dialect.");
        json_object_end(out);
        write_security(out, strcmp(core_routes[i].auth, "key") == 0, false);
        json_object_end(out);
        json_object_end(out);
    }
}

static void write_schemes(struct json_out *out)
{
    json_raw(out,
             SLICE_LIT("{\"securitySchemes\":{"
                       "\"bearer\":{\"type\":\"http\",\"scheme\":\"bearer\","
                       "\"description\":\"A key of this gateway, or a user's session.\"},"
                       "\"apiKey\":{\"type\":\"apiKey\",\"in\":\"header\",\"name\":\"x-api-key\","
                       "\"description\":\"The same key, as Claude's SDKs send it.\"},"
                       "\"admin\":{\"type\":\"http\",\"scheme\":\"bearer\","
                       "\"description\":\"The admin token.\"}}}"));
}

int plugin_set_openapi(const struct plugin_set *set, struct buf *out_buf)
{
    struct json_out out;
    json_begin(&out, out_buf);
    json_object(&out);
    json_key(&out, "openapi");
    json_str(&out, "3.1.0");
    json_key(&out, "info");
    json_object(&out);
    json_key(&out, "title");
    json_text(&out,
              set->conf && set->conf->app_name.len ? set->conf->app_name : SLICE_LIT("Moongate"));
    json_key(&out, "version");
    json_str(&out, MOONGATE_VERSION);
    json_object_end(&out);
    json_key(&out, "jsonSchemaDialect");
    json_str(&out, "https://json-schema.org/draft/2020-12/schema");
    json_key(&out, "tags");
    json_array(&out);
    for (size_t i = 0; i < set->count; i++) {
        if (set->defs[i].route_count == 0)
            continue;
        json_object(&out);
        json_key(&out, "name");
        json_str(&out, set->defs[i].name);
        json_key(&out, "description");
        json_text(&out, set->defs[i].about);
        json_object_end(&out);
    }
    json_array_end(&out);
    json_key(&out, "paths");
    json_object(&out);
    write_core_routes(&out);
    for (size_t i = 0; i < set->count; i++) {
        for (size_t k = 0; k < set->defs[i].route_count; k++) {
            if (!is_first(set, i, k))
                continue;
            json_key_slice(&out, set->defs[i].routes[k].path);
            json_object(&out);
            write_path(&out, set, set->defs[i].routes[k].path);
            json_object_end(&out);
        }
    }
    json_object_end(&out);
    json_key(&out, "components");
    write_schemes(&out);
    json_object_end(&out);
    return json_end(&out);
}

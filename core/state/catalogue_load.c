// Builds a catalogue from main.db. Runs at start and on the writer lane after each change.
#include "base/log.h"
#include "codec/fernet.h"
#include "codec/json.h"
#include "state/catalogue.h"
#include "state/db.h"
#include <stdio.h>

#define JSON_CAP (8u << 20)

struct loader {
    struct arena *arena;
    const struct fernet *fernet;
    struct health *health;
    struct catalogue *catalogue;
    size_t upstream_capacity, price_capacity;
    struct upstream *upstreams;
    struct price *prices;
};

static void drop_key(void *arg)
{
    struct secret *key = arg;
    log_forget_secret(secret_reveal(key));
    secret_unref(key);
}

static void *grown(struct arena *arena, void *old, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return old;
    size_t wanted = *capacity ? *capacity * 2 : 16;
    void *place = arena_zalloc(arena, wanted * size);
    if (!place)
        return NULL;
    if (count)
        memcpy(place, old, count * size);
    *capacity = wanted;
    return place;
}

static int take_text(struct loader *loader, const struct db_value *value, struct slice *out)
{
    struct slice text = value->kind == DB_TEXT ? value->bytes : SLICE_LIT("");
    *out = arena_copy(loader->arena, text);
    return out->ptr ? 0 : GW_ENOMEM;
}

static void break_upstream(struct upstream *upstream, const char *reason)
{
    upstream->is_broken = true;
    log_event(LOG_ERROR, "upstream_broken", LOG_SLICE("upstream", upstream->name),
              LOG_STR("reason", reason));
}

static int take_key(struct loader *loader, const struct db_value *value, struct upstream *upstream)
{
    if (value->kind != DB_TEXT || value->bytes.len == 0)
        return 0;
    struct buf plain = BUF_INIT(0);
    int err = fernet_decrypt(loader->fernet, value->bytes, -1, 0, &plain);
    if (err) {
        buf_wipe(&plain);
        if (err == GW_ENOMEM)
            return err;
        break_upstream(upstream, "no key of the ring decrypts its API key");
        return 0;
    }
    if (plain.len) {
        upstream->api_key = secret_new(buf_slice(&plain));
        err = upstream->api_key ? 0 : GW_ENOMEM;
    }
    if (upstream->api_key && log_hide_secret(buf_slice(&plain)) == GW_EFULL)
        log_event(LOG_WARN, "secret_not_hidden", LOG_SLICE("upstream", upstream->name));
    if (upstream->api_key && arena_on_free(loader->arena, drop_key, upstream->api_key) != 0) {
        drop_key(upstream->api_key);
        upstream->api_key = NULL;
        err = GW_ENOMEM;
    }
    buf_wipe(&plain);
    return err;
}

static void take_formats(struct slice formats, struct upstream *upstream)
{
    while (formats.len) {
        const char *comma = memchr(formats.ptr, ',', formats.len);
        struct slice name = comma ? slice_of(formats.ptr, (size_t)(comma - formats.ptr)) : formats;
        formats = slice_from(formats, name.len + 1);
        if (slice_is(name, "openai"))
            upstream->speaks[DIALECT_OPENAI] = true;
        else if (slice_is(name, "responses"))
            upstream->speaks[DIALECT_RESPONSES] = true;
        else if (slice_is(name, "claude"))
            upstream->speaks[DIALECT_ANTHROPIC] = true;
    }
}

// A list of names, or an object of public name to upstream name.
static int take_models(struct loader *loader, const struct db_value *value,
                       struct upstream *upstream)
{
    struct json_doc *doc = NULL;
    const char *error = NULL;
    size_t at = 0, i, max, count = 0;
    if (value->kind != DB_TEXT || value->bytes.len == 0)
        return 0;
    int err = json_parse(value->bytes, JSON_CAP, &doc, &error, &at);
    yyjson_val *root = err ? NULL : json_root(doc), *key, *val;
    if (!yyjson_is_arr(root) && !yyjson_is_obj(root)) {
        break_upstream(upstream, "its models are neither a list nor an object");
        json_doc_free(doc);
        return err == GW_ENOMEM ? err : 0;
    }
    size_t size = yyjson_get_len(root);
    struct upstream_model *models = arena_zalloc(loader->arena, (size + 1) * sizeof(*models));
    err = models ? 0 : GW_ENOMEM;
    if (err == 0 && yyjson_is_arr(root)) {
        yyjson_arr_foreach(root, i, max, val)
        {
            struct slice name = json_string_slice(val);
            if (name.len)
                models[count++].public_name = arena_copy(loader->arena, name);
        }
    } else if (err == 0) {
        yyjson_obj_foreach(root, i, max, key, val)
        {
            struct slice public_name = json_string_slice(key), name = json_string_slice(val);
            if (!public_name.len)
                continue;
            models[count].public_name = arena_copy(loader->arena, public_name);
            if (name.len)
                models[count].upstream_name = arena_copy(loader->arena, name);
            count++;
        }
    }
    for (i = 0; i < count; i++)
        if (!models[i].public_name.ptr)
            err = GW_ENOMEM;
    upstream->models = models;
    upstream->model_count = count;
    json_doc_free(doc);
    return err;
}

static int64_t number(const struct db_value *value, int64_t otherwise)
{
    return value->kind == DB_INT ? value->integer : otherwise;
}

static uint32_t milliseconds(const struct db_value *value)
{
    int64_t ms = number(value, 0);
    return ms <= 0 ? 0 : ms > UINT32_MAX ? UINT32_MAX : (uint32_t)ms;
}

static int on_upstream(void *user, const struct db_value *row, size_t count)
{
    struct loader *loader = user;
    size_t at = loader->catalogue->upstream_count;
    loader->upstreams = grown(loader->arena, loader->upstreams, at, &loader->upstream_capacity,
                              sizeof(*loader->upstreams));
    if (!loader->upstreams || count != 22)
        return GW_ENOMEM;
    struct upstream *upstream = &loader->upstreams[at];
    upstream->id = row[0].integer;
    snprintf(upstream->uid, sizeof(upstream->uid), "%.*s", (int)row[1].bytes.len, row[1].bytes.ptr);
    int err = take_text(loader, &row[2], &upstream->name);
    if (err == 0)
        err = take_text(loader, &row[3], &upstream->provider);
    if (err == 0)
        err = take_text(loader, &row[4], &upstream->base_url);
    if (err == 0)
        err = take_key(loader, &row[5], upstream);
    take_formats(row[6].bytes, upstream);
    if (err == 0)
        err = take_models(loader, &row[7], upstream);
    upstream->is_default = number(&row[8], 0);
    upstream->is_active = true;
    upstream->first_byte_ms = milliseconds(&row[9]) * 1000;
    upstream->weight = number(&row[10], 50);
    upstream->priority = number(&row[11], 0);
    upstream->passthrough_all = row[12].kind == DB_TEXT && slice_is(row[12].bytes, "all");
    upstream->has_disconnect_policy = row[13].kind == DB_TEXT;
    upstream->drains_on_disconnect =
        upstream->has_disconnect_policy && slice_is(row[13].bytes, "drain");
    upstream->connect_ms = milliseconds(&row[14]);
    upstream->tls_ms = milliseconds(&row[15]);
    if (milliseconds(&row[16]))
        upstream->first_byte_ms = milliseconds(&row[16]);
    upstream->event_ms = milliseconds(&row[17]);
    if (err == 0)
        err = take_text(loader, &row[18], &upstream->config_json);
    if (upstream->config_json.len == 0)
        upstream->config_json = SLICE_LIT("{}");
    upstream->created_ms = number(&row[19], 0);
    upstream->updated_ms = number(&row[20], 0);
    upstream->max_concurrency = (uint32_t)number(&row[21], 0);
    upstream->health = health_slot_of(loader->health, upstream->id);
    if (!upstream->health)
        err = GW_ENOMEM;
    loader->catalogue->upstream_count++;
    return err;
}

static int on_price(void *user, const struct db_value *row, size_t count)
{
    struct loader *loader = user;
    size_t at = loader->catalogue->price_count;
    loader->prices =
        grown(loader->arena, loader->prices, at, &loader->price_capacity, sizeof(*loader->prices));
    if (!loader->prices || count != 13)
        return GW_ENOMEM;
    struct price *price = &loader->prices[at];
    price->version = row[0].integer;
    int64_t *const fields[] = {
        &price->input,          &price->output,    &price->cache_read, &price->cache_write_5m,
        &price->cache_write_1h, &price->reasoning, &price->audio_in,   &price->audio_out,
        &price->image_in,       &price->per_call,  &price->max_output,
    };
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        *fields[i] = number(&row[2 + i], -1);
    loader->catalogue->price_count++;
    return take_text(loader, &row[1], &price->model);
}

int catalogue_load(struct db *db, const struct fernet *fernet, struct health *health,
                   uint64_t version, struct catalogue **out)
{
    struct loader loader = {.fernet = fernet, .health = health};
    loader.arena = arena_new(8192);
    loader.catalogue = loader.arena ? arena_zalloc(loader.arena, sizeof(*loader.catalogue)) : NULL;
    if (!loader.catalogue) {
        arena_free(loader.arena);
        return GW_ENOMEM;
    }
    int err = db_each(db,
                      SLICE_LIT("SELECT id, uid, name, provider, base_url, api_key_enc, formats, "
                                "models, is_default, timeout_s, weight, priority, passthrough, "
                                "disconnect, connect_ms, tls_ms, first_byte_ms, event_ms, config, "
                                "created_ms, updated_ms, max_concurrency FROM upstreams "
                                "WHERE is_active = 1 "
                                "ORDER BY id"),
                      NULL, 0, on_upstream, &loader);
    if (err == 0)
        err = db_each(db,
                      SLICE_LIT("SELECT id, model, input, output, cache_read, cache_write_5m, "
                                "cache_write_1h, reasoning, audio_in, audio_out, image_in, "
                                "per_call, max_output FROM prices WHERE retired_ms IS NULL "
                                "ORDER BY id"),
                      NULL, 0, on_price, &loader);
    if (err) {
        arena_free(loader.arena);
        return err;
    }
    loader.catalogue->version = version;
    loader.catalogue->arena = loader.arena;
    loader.catalogue->upstreams = loader.upstreams;
    loader.catalogue->prices = loader.prices;
    *out = loader.catalogue;
    return 0;
}

// gw.kv, crypto, secret, random, json, log, metrics: nothing here waits.
#include "base/clock.h"
#include "base/id.h"
#include "base/log.h"
#include "codec/digest.h"
#include "codec/fernet.h"
#include "script/lua_json.h"
#include "script/lua_secret.h"
#include "script/runtime.h"
#include <stdlib.h>
#include <string.h>

#define MAX_KEY 512
#define MAX_VALUE ((size_t)1 << 20)
#define MAX_CRYPTO ((size_t)16 << 20)

static const struct script_options *options_of(lua_State *L)
{
    return &plugin_of(L)->generation->script->options;
}

// ---- kv

static struct slice space_of(lua_State *L)
{
    return slice_str(plugin_of(L)->name);
}

static struct slice check_key(lua_State *L)
{
    struct slice key = lua_env_check_slice(L, 1);
    luaL_argcheck(L, key.len > 0 && key.len <= MAX_KEY, 1, "a key has 1 to 512 bytes");
    return key;
}

static struct slice check_value(lua_State *L)
{
    struct slice value = lua_env_check_slice(L, 2);
    luaL_argcheck(L, value.len <= MAX_VALUE, 2, "a value has up to 1 MiB");
    return value;
}

static uint64_t check_ttl(lua_State *L, int index)
{
    lua_Number seconds = luaL_optnumber(L, index, 0);
    luaL_argcheck(L, seconds >= 0 && seconds <= 366.0 * 86400, index, "seconds to live");
    return (uint64_t)(seconds * 1000);
}

static int push_stored(lua_State *L, int err)
{
    if (err == 0 || err == GW_EEXISTS) {
        lua_pushboolean(L, err == 0);
        return 1;
    }
    lua_pushnil(L);
    lua_pushstring(L, err == GW_EFULL ? "full" : gw_err_name(err));
    return 2;
}

static int kv_lua_set(lua_State *L)
{
    struct slice key = check_key(L), value = check_value(L);
    return push_stored(L, kv_set(options_of(L)->kv, space_of(L), key, value, check_ttl(L, 3)));
}

static int kv_lua_add(lua_State *L)
{
    struct slice key = check_key(L), value = check_value(L);
    return push_stored(L, kv_add(options_of(L)->kv, space_of(L), key, value, check_ttl(L, 3)));
}

static int kv_lua_get(lua_State *L)
{
    struct slice key = check_key(L);
    struct buf *out = lua_env_buffer(L, MAX_VALUE + 1);
    if (kv_get(options_of(L)->kv, space_of(L), key, out) != 0)
        return 0;
    lua_env_push_slice(L, buf_slice(out));
    buf_free(out);
    return 1;
}

static int kv_lua_drop(lua_State *L)
{
    lua_pushboolean(L, kv_drop(options_of(L)->kv, space_of(L), check_key(L)) == 0);
    return 1;
}

static int kv_lua_incr(lua_State *L)
{
    struct slice key = check_key(L);
    lua_Number by = luaL_optnumber(L, 2, 1);
    luaL_argcheck(L, by == (lua_Number)(int64_t)by && by >= -9e15 && by <= 9e15, 2,
                  "whole number expected");
    int64_t value;
    int err = kv_incr(options_of(L)->kv, space_of(L), key, (int64_t)by, check_ttl(L, 3), &value);
    if (err) {
        lua_pushnil(L);
        lua_pushstring(L, err == GW_EINVAL ? "not a number" : gw_err_name(err));
        return 2;
    }
    lua_pushnumber(L, (lua_Number)value);
    return 1;
}

// ---- crypto

static struct slice check_bytes(lua_State *L, int index)
{
    struct slice bytes = lua_secret_bytes(L, index);
    luaL_argcheck(L, bytes.len <= MAX_CRYPTO, index, "too long");
    lua_env_charge(L, bytes.len / 32);
    return bytes;
}

static int push_hex(lua_State *L, const uint8_t *bytes, size_t len)
{
    char text[65];
    digest_hex(bytes, len, text);
    lua_pushlstring(L, text, len * 2);
    return 1;
}

static int crypto_sha256hex(lua_State *L)
{
    struct sha256 hash;
    if (secret_sha256(check_bytes(L, 1), &hash) != 0)
        return luaL_error(L, "sha256 failed");
    return push_hex(L, hash.bytes, sizeof hash.bytes);
}

static int crypto_hmac_sha256(lua_State *L)
{
    struct sha256 hash;
    if (secret_hmac_sha256(check_bytes(L, 1), check_bytes(L, 2), &hash) != 0)
        return luaL_error(L, "hmac failed");
    return push_hex(L, hash.bytes, sizeof hash.bytes);
}

// md5hex(part, …): the parts one after another, so that a secret can be at the end.
static int crypto_md5hex(lua_State *L)
{
    int count = lua_gettop(L);
    uint8_t hash[16];
    if (count == 1) {
        if (digest_md5(check_bytes(L, 1), hash) != 0)
            return luaL_error(L, "md5 is not available");
        return push_hex(L, hash, sizeof hash);
    }
    struct buf *joined = lua_env_buffer(L, MAX_CRYPTO);
    size_t total = 0;
    for (int i = 1; i <= count; i++)
        total += check_bytes(L, i).len;
    if (!buf_room(joined, total + 1))
        return luaL_error(L, "out of memory");
    for (int i = 1; i <= count; i++)
        if (buf_append(joined, check_bytes(L, i)) != 0)
            return luaL_error(L, "out of memory");
    int err = digest_md5(buf_slice(joined), hash);
    buf_wipe(joined);
    if (err)
        return luaL_error(L, "md5 is not available");
    return push_hex(L, hash, sizeof hash);
}

static int crypto_token(lua_State *L)
{
    lua_Integer count = luaL_optinteger(L, 1, 32);
    luaL_argcheck(L, count >= 8 && count <= 256, 1, "8 to 256 bytes");
    struct buf *out = lua_env_buffer(L, 1024);
    if (secret_random_base64url((size_t)count, out) != 0)
        return luaL_error(L, "no randomness");
    lua_env_push_slice(L, buf_slice(out));
    buf_wipe(out);
    return 1;
}

static int crypto_mask(lua_State *L)
{
    struct buf *out = lua_env_buffer(L, 256);
    if (secret_mask_upstream_key(lua_secret_bytes(L, 1), out) != 0)
        return luaL_error(L, "out of memory");
    lua_env_push_slice(L, buf_slice(out));
    buf_free(out);
    return 1;
}

static int crypto_equal(lua_State *L)
{
    lua_pushboolean(L, secret_equal(check_bytes(L, 1), check_bytes(L, 2)));
    return 1;
}

static int crypto_uuid(lua_State *L)
{
    struct gw_id id;
    char text[37];
    if (id_new_random(&id) != 0)
        return luaL_error(L, "no randomness");
    id_format(&id, text);
    lua_pushstring(L, text);
    return 1;
}

static struct fernet *check_fernet(lua_State *L)
{
    struct fernet *fernet = store_fernet(options_of(L)->store);
    if (!fernet)
        luaL_error(L, "no encryption key is configured");
    return fernet;
}

static int crypto_fernet_encrypt(lua_State *L)
{
    struct slice plain = check_bytes(L, 1);
    luaL_argcheck(L, plain.len <= 65536, 1, "too long");
    struct buf *out = lua_env_buffer(L, 131072);
    if (fernet_encrypt(check_fernet(L), plain, out) != 0)
        return luaL_error(L, "encryption failed");
    lua_env_push_slice(L, buf_slice(out));
    buf_free(out);
    return 1;
}

// token → secret | nil, why
static int crypto_fernet_decrypt(lua_State *L)
{
    struct slice token = lua_env_check_slice(L, 1);
    luaL_argcheck(L, token.len <= 131072, 1, "too long");
    struct buf *out = lua_env_buffer(L, 131072);
    if (!buf_room(out, token.len + 1))
        return luaL_error(L, "out of memory");
    int err = fernet_decrypt(check_fernet(L), token, -1, 0, out);
    if (err) {
        lua_pushnil(L);
        lua_pushstring(L, err == GW_EDENIED ? "no key opens it" : "not a token");
        return 2;
    }
    lua_secret_push_bytes(L, buf_slice(out));
    buf_wipe(out);
    return 1;
}

static int gw_secret(lua_State *L)
{
    const struct plugin_rt *plugin = plugin_of(L);
    struct slice name = lua_env_check_slice(L, 1);
    bool is_declared = false;
    for (size_t i = 0; i < plugin->def->needs.secret_count; i++)
        is_declared = is_declared || slice_eq(plugin->def->needs.secrets[i].name, name);
    for (size_t i = 0; i < plugin->def->config_secret_count; i++)
        is_declared = is_declared || slice_eq(plugin->def->config_secrets[i].name, name);
    if (!is_declared) {
        char need[200];
        snprintf(need, sizeof need, "secrets = {\"%.*s\"}", (int)(name.len > 80 ? 80 : name.len),
                 name.ptr);
        return gw_refuse(L, "gw.secret", need);
    }
    struct secret *secret = plugin_def_secret(plugin->def, name);
    if (!secret) {
        lua_pushnil(L);
        lua_pushliteral(L, "not set");
        return 2;
    }
    lua_secret_push(L, secret);
    return 1;
}

// ---- random

static uint32_t random_u32(lua_State *L)
{
    uint32_t value = 0;
    if (clock_random(&value, sizeof value) != 0)
        luaL_error(L, "no randomness");
    return value;
}

// gw.random(n) → 1..n; gw.random() → 0 ≤ x < 1
static int gw_random(lua_State *L)
{
    if (lua_isnoneornil(L, 1)) {
        lua_pushnumber(L, random_u32(L) / 4294967296.0);
        return 1;
    }
    lua_Number limit = luaL_checknumber(L, 1);
    luaL_argcheck(L, limit >= 1 && limit <= 4294967295.0, 1, "1 to 2^32 - 1");
    uint64_t scaled = (uint64_t)random_u32(L) * (uint64_t)limit;
    lua_pushnumber(L, (lua_Number)(scaled >> 32) + 1);
    return 1;
}

static int gw_random_u32(lua_State *L)
{
    lua_pushnumber(L, random_u32(L));
    return 1;
}

// ---- log

static int write_log(lua_State *L, enum log_level level)
{
    const struct plugin_rt *plugin = plugin_of(L);
    const char *event = luaL_checkstring(L, 1);
    if (!log_is_on(level))
        return 0;
    struct buf *out = lua_env_buffer(L, 16384);
    if (lua_istable(L, 2))
        lua_json_encode(L, 2, out);
    else if (buf_append_str(out, "{}") != 0)
        return luaL_error(L, "out of memory");
    log_event(level, event, LOG_STR("plugin", plugin->name), LOG_JSON("fields", buf_slice(out)));
    buf_free(out);
    return 0;
}

static int log_debug(lua_State *L)
{
    return write_log(L, LOG_DEBUG);
}

static int log_info(lua_State *L)
{
    return write_log(L, LOG_INFO);
}

static int log_warn(lua_State *L)
{
    return write_log(L, LOG_WARN);
}

static int log_error(lua_State *L)
{
    return write_log(L, LOG_ERROR);
}

// ---- metrics

// The declared metric and its label values (a table by label name at index 2).
static const struct plugin_metric *check_metric(lua_State *L, int *number, struct slice *values)
{
    const struct plugin_rt *plugin = plugin_of(L);
    struct slice name = lua_env_check_slice(L, 1);
    for (size_t i = 0; i < plugin->def->metric_count; i++) {
        const struct plugin_metric *metric = &plugin->def->metrics[i];
        if (!slice_eq(metric->name, name))
            continue;
        *number = plugin->metrics ? plugin->metrics[i] : -1;
        struct slice rest = metric->labels;
        for (size_t n = 0; n < metric->label_count; n++) {
            const char *comma = memchr(rest.ptr, ',', rest.len);
            size_t len = comma ? (size_t)(comma - rest.ptr) : rest.len;
            values[n] = SLICE_LIT("");
            if (lua_istable(L, 2)) {
                lua_pushlstring(L, rest.ptr, len);
                lua_rawget(L, 2);
                if (lua_type(L, -1) == LUA_TNUMBER)
                    lua_tostring(L, -1);
                if (lua_type(L, -1) == LUA_TSTRING)
                    values[n] = lua_env_check_slice(L, -1); // stays on the stack
            }
            rest = slice_from(rest, len + 1);
        }
        return metric;
    }
    luaL_error(L, "metric '%s' is not declared in the plugin's `metrics`", name.ptr);
    return NULL;
}

#define MAX_LABELS 8

static int64_t check_amount(lua_State *L, int index)
{
    lua_Number amount = luaL_optnumber(L, index, 1);
    luaL_argcheck(L, amount >= -9e15 && amount <= 9e15, index, "out of range");
    return (int64_t)amount;
}

static int use_metric(lua_State *L, enum stats_kind kind, bool is_set)
{
    struct slice values[MAX_LABELS];
    int number = -1;
    lua_settop(L, 3);
    struct stats_shard *shard = options_of(L)->shard;
    const struct plugin_metric *metric = check_metric(L, &number, values);
    bool fits = is_set                    ? metric->kind == STATS_GAUGE
                : kind == STATS_HISTOGRAM ? metric->kind == STATS_HISTOGRAM
                                          : metric->kind != STATS_HISTOGRAM;
    if (!fits)
        return luaL_error(L, "metric '%s' is of another kind", lua_tostring(L, 1));
    if (!shard || number < 0)
        return 0;
    if (kind == STATS_HISTOGRAM) {
        lua_Number seconds = luaL_checknumber(L, 3);
        luaL_argcheck(L, seconds >= 0 && seconds <= 1e9, 3, "seconds");
        stats_observe_ms(shard, number, values, metric->label_count, (uint64_t)(seconds * 1000));
    } else if (is_set) {
        stats_set(shard, number, values, metric->label_count, check_amount(L, 3));
    } else {
        stats_add(shard, number, values, metric->label_count, check_amount(L, 3));
    }
    return 0;
}

static int metrics_add(lua_State *L)
{
    return use_metric(L, STATS_COUNTER, false);
}

static int metrics_set(lua_State *L)
{
    return use_metric(L, STATS_GAUGE, true);
}

static int metrics_observe(lua_State *L)
{
    return use_metric(L, STATS_HISTOGRAM, false);
}

void plugin_metrics_register(struct plugin_rt *plugin)
{
    const struct plugin_def *def = plugin->def;
    struct stats *stats = plugin->generation->script->options.stats;
    if (!stats || def->metric_count == 0)
        return;
    plugin->metrics = calloc(def->metric_count, sizeof *plugin->metrics);
    for (size_t i = 0; plugin->metrics && i < def->metric_count; i++) {
        const struct plugin_metric *metric = &def->metrics[i];
        char name[256], help[256], labels[256];
        snprintf(name, sizeof name, "%.*s", SLICE_FMT(metric->full_name));
        snprintf(help, sizeof help, "%.*s", SLICE_FMT(metric->help));
        snprintf(labels, sizeof labels, "%.*s", SLICE_FMT(metric->labels));
        plugin->metrics[i] = metric->label_count <= MAX_LABELS
                                 ? stats_register(stats, metric->kind, name, help, labels, NULL, 0)
                                 : -1;
    }
}

// ---- opening

static void add_table(struct plugin_rt *plugin, lua_State *L, const char *name,
                      const struct gw_function *functions, size_t count)
{
    lua_createtable(L, 0, (int)count);
    gw_set_functions(plugin, L, functions, count);
    lua_setfield(L, -2, name);
}

void gw_open_tools(struct plugin_rt *plugin, lua_State *L)
{
    static const struct gw_function KV[] = {{"get", kv_lua_get, false},
                                            {"set", kv_lua_set, false},
                                            {"add", kv_lua_add, false},
                                            {"drop", kv_lua_drop, false},
                                            {"incr", kv_lua_incr, false}};
    static const struct gw_function CRYPTO[] = {{"sha256hex", crypto_sha256hex, false},
                                                {"hmac_sha256", crypto_hmac_sha256, false},
                                                {"md5hex", crypto_md5hex, false},
                                                {"token", crypto_token, false},
                                                {"mask", crypto_mask, false},
                                                {"equal", crypto_equal, false},
                                                {"uuid", crypto_uuid, false},
                                                {"fernet_encrypt", crypto_fernet_encrypt, false},
                                                {"fernet_decrypt", crypto_fernet_decrypt, false}};
    static const struct gw_function LOG[] = {{"debug", log_debug, false},
                                             {"info", log_info, false},
                                             {"warn", log_warn, false},
                                             {"error", log_error, false}};
    static const struct gw_function METRICS[] = {{"add", metrics_add, false},
                                                 {"set", metrics_set, false},
                                                 {"observe", metrics_observe, false}};
    static const struct gw_function TOP[] = {{"secret", gw_secret, false},
                                             {"random", gw_random, false},
                                             {"random_u32", gw_random_u32, false}};
    add_table(plugin, L, "kv", KV, sizeof KV / sizeof *KV);
    add_table(plugin, L, "crypto", CRYPTO, sizeof CRYPTO / sizeof *CRYPTO);
    add_table(plugin, L, "log", LOG, sizeof LOG / sizeof *LOG);
    add_table(plugin, L, "metrics", METRICS, sizeof METRICS / sizeof *METRICS);
    gw_set_functions(plugin, L, TOP, sizeof TOP / sizeof *TOP);
    lua_json_open(L);
    lua_setfield(L, -2, "json");
}

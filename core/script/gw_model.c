// What hooks ask without waiting: the caller's key, candidates, models, the cost. All from the
// in-memory directory and catalogue inside this turn's epoch; Lua gets copies.
#include "base/clock.h"
#include "base/money.h"
#include "script/lua_json.h"
#include "script/lua_money.h"
#include "script/lua_secret.h"
#include "script/runtime.h"
#include "state/catalogue.h"
#include "state/directory.h"
#include "state/health.h"
#include <string.h>

static struct store *store_of(lua_State *L)
{
    return plugin_of(L)->generation->script->options.store;
}

static const struct catalogue *catalogue_of(lua_State *L)
{
    return catalogue_get(store_catalogue(store_of(L)));
}

static uint64_t boot_now_ms(lua_State *L)
{
    return loop_now_ms(plugin_of(L)->generation->script->options.loop);
}

// ---- keys

static const struct key_entry *find_key(lua_State *L, struct slice credential)
{
    struct sha256 hash;
    if (secret_sha256(credential, &hash) != 0)
        return NULL;
    const struct key_entry *key = directory_key(store_directory(store_of(L)), &hash);
    if (!key || !key->is_active || (key->expires_ms && key->expires_ms <= clock_wall_ms()))
        return NULL;
    return key;
}

static int fail(lua_State *L, const char *reason)
{
    lua_pushnil(L);
    lua_pushstring(L, reason);
    return 2;
}

// gw.keys.authenticate(ctx) → view | nil, "missing" | "conflict" | "invalid" | "disabled"
static int keys_authenticate(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    const struct coroutine *co = co_running(L);
    if (!co || co->ctx != ctx || strcmp(co->what, "identify") != 0)
        return luaL_error(L, "gw.keys.authenticate is allowed in the identify hook only");
    struct slice credential;
    int err = ctx->request ? ctx_credential(ctx->request, &credential) : GW_ENOTFOUND;
    if (err)
        return fail(L, err == GW_ENOTFOUND ? "missing" : "conflict");
    const struct key_entry *key = find_key(L, credential);
    if (!key)
        return fail(L, "invalid");
    const struct user_entry *user =
        key->user_id ? directory_user(store_directory(store_of(L)), key->user_id) : NULL;
    if (key->user_id && (!user || !user->is_active))
        return fail(L, "disabled");
    if (ctx_copy_key(ctx->arena, key, &ctx->key) != 0 ||
        (user && ctx_copy_user(ctx->arena, user, &ctx->user) != 0))
        return luaL_error(L, "out of memory for this exchange");
    if (key->slot) {
        atomic_store_explicit(&key->slot->last_used_ms, ctx->started_wall_ms, memory_order_relaxed);
        atomic_fetch_add_explicit(&key->slot->request_count, 1, memory_order_relaxed);
    }
    ctx->is_identified = true;
    ctx_lua_push_key(L, &ctx->key);
    return 1;
}

static int push_key_entry(lua_State *L, const struct key_entry *key)
{
    char uid[37];
    key_entry_uid(key, uid);
    lua_createtable(L, 0, 5);
    lua_pushnumber(L, (lua_Number)key->id);
    lua_setfield(L, -2, "id");
    lua_pushstring(L, uid);
    lua_setfield(L, -2, "uid");
    lua_env_push_slice(L, key_entry_name(key));
    lua_setfield(L, -2, "name");
    lua_env_push_slice(L, key_entry_prefix(key));
    lua_setfield(L, -2, "prefix");
    if (key->user_id) {
        lua_pushnumber(L, (lua_Number)key->user_id);
        lua_setfield(L, -2, "user_id");
    }
    if (key->has_upstream_list) {
        lua_createtable(L, (int)key->upstream_count, 0);
        for (size_t i = 0; i < key->upstream_count; i++) {
            lua_pushnumber(L, (lua_Number)key_entry_upstream_ids(key)[i]);
            lua_rawseti(L, -2, (int)i + 1);
        }
        lua_setfield(L, -2, "upstream_ids");
    }
    return 1;
}

// gw.keys.find(secret) → view | nil
static int keys_find(lua_State *L)
{
    struct secret *secret = lua_secret_get(L, 1);
    luaL_argcheck(L, secret, 1, "secret expected");
    const struct key_entry *key = find_key(L, secret_reveal(secret));
    if (!key)
        return 0;
    return push_key_entry(L, key);
}

// ---- upstreams

static void set_text(lua_State *L, const char *name, struct slice text)
{
    lua_env_push_slice(L, text);
    lua_setfield(L, -2, name);
}

static void set_number(lua_State *L, const char *name, double number)
{
    lua_pushnumber(L, number);
    lua_setfield(L, -2, name);
}

static void set_boolean(lua_State *L, const char *name, bool value)
{
    lua_pushboolean(L, value);
    lua_setfield(L, -2, name);
}

static void set_health(lua_State *L, struct health_slot *slot)
{
    struct health_view view = {0};
    uint64_t now = boot_now_ms(L);
    if (slot)
        health_read(slot, now, &view);
    set_boolean(L, "usable", !slot || health_is_usable(slot, now));
    set_boolean(L, "cooling", view.cool_until_ms > now);
    set_number(L, "in_flight", view.in_flight);
    set_number(L, "latency_ms", view.latency_ms);
}

static const char MAKE_VIEW[] =
    "return function(id, uid, name, provider, weight, priority, is_default, usable, cooling,\n"
    "    in_flight, latency_ms, model, allowed)\n"
    "  return { id = id, uid = uid, name = name, provider = provider, weight = weight,\n"
    "    priority = priority, is_default = is_default, usable = usable, cooling = cooling,\n"
    "    in_flight = in_flight, latency_ms = latency_ms, model = model, native = allowed,\n"
    "    allowed = allowed }\n"
    "end\n";

// A view; of a candidate also its model and that it is one.
static void push_upstream(lua_State *L, const struct upstream *upstream, struct slice model,
                          bool is_candidate)
{
    struct health_view view = {0};
    uint64_t now = boot_now_ms(L);
    if (upstream->health)
        health_read(upstream->health, now, &view);
    ctx_lua_push_maker(L, MAKE_VIEW);
    lua_pushnumber(L, (lua_Number)upstream->id);
    lua_env_push_slice(L, slice_str(upstream->uid));
    lua_env_push_slice(L, upstream->name);
    lua_env_push_slice(L, upstream->provider);
    lua_pushnumber(L, (lua_Number)upstream->weight);
    lua_pushnumber(L, (lua_Number)upstream->priority);
    lua_pushboolean(L, upstream->is_default);
    lua_pushboolean(L, !upstream->health || health_is_usable(upstream->health, now));
    lua_pushboolean(L, view.cool_until_ms > now);
    lua_pushnumber(L, view.in_flight);
    lua_pushnumber(L, view.latency_ms);
    if (model.ptr)
        lua_env_push_slice(L, model);
    else
        lua_pushnil(L);
    if (is_candidate)
        lua_pushboolean(L, 1);
    else
        lua_pushnil(L);
    lua_call(L, 13, 1);
}

static bool key_allows(const struct ctx_key *key, int64_t upstream_id)
{
    if (!key->has_upstream_list)
        return true;
    for (size_t i = 0; i < key->upstream_count; i++)
        if (key->upstream_ids[i] == upstream_id)
            return true;
    return false;
}

static bool serves_op(const struct ctx *ctx, const struct upstream *upstream)
{
    if (ctx->dialect == DIALECT_NONE || !upstream->speaks[ctx->dialect])
        return false;
    // Without a model it is one of the routes with state at the provider.
    return ctx->op != DIALECT_OP_OTHER || ctx->model.len > 0 || upstream->passthrough_all;
}

// gw.upstreams.candidates(ctx) → list of views
static int upstreams_candidates(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    const struct catalogue *catalogue = catalogue_of(L);
    lua_newtable(L);
    int count = 0;
    for (size_t i = 0; catalogue && i < catalogue->upstream_count; i++) {
        const struct upstream *upstream = &catalogue->upstreams[i];
        if (!upstream->is_active || upstream->is_broken || !serves_op(ctx, upstream) ||
            !key_allows(&ctx->key, upstream->id) ||
            (upstream->is_user_account && upstream->owner_user_id != ctx->user.id))
            continue;
        struct slice model = ctx->model;
        if (model.len > 0)
            model = catalogue_model_for(upstream, ctx->model, ctx->arena);
        if (ctx->model.len > 0 && !model.ptr)
            continue;
        push_upstream(L, upstream, model, true);
        lua_rawseti(L, -2, ++count);
    }
    lua_env_charge(L, catalogue ? catalogue->upstream_count * 4 : 0);
    return 1;
}

// gw.upstreams.all() → views without secrets
static int upstreams_all(lua_State *L)
{
    const struct catalogue *catalogue = catalogue_of(L);
    if (plugin_of(L)->def->needs.upstreams < PLUGIN_ACCESS_READ)
        return gw_refuse(L, "gw.upstreams.all", "upstreams = \"read\"");
    lua_newtable(L);
    for (size_t i = 0; catalogue && i < catalogue->upstream_count; i++) {
        const struct upstream *upstream = &catalogue->upstreams[i];
        push_upstream(L, upstream, SLICE_NONE, false);
        set_text(L, "base_url", upstream->base_url);
        set_boolean(L, "is_active", upstream->is_active);
        set_boolean(L, "is_broken", upstream->is_broken);
        static const char *const NAMES[] = {NULL, "openai", "responses", "claude"};
        lua_newtable(L);
        for (int id = 1, n = 0; id < DIALECT_COUNT; id++) {
            if (!upstream->speaks[id])
                continue;
            lua_pushstring(L, NAMES[id]);
            lua_rawseti(L, -2, ++n);
        }
        lua_setfield(L, -2, "formats");
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

// gw.upstreams.health(id) → {…} | nil
static int upstreams_health(lua_State *L)
{
    int64_t id = (int64_t)luaL_checknumber(L, 1);
    const struct catalogue *catalogue = catalogue_of(L);
    const struct upstream *upstream = catalogue ? catalogue_upstream(catalogue, id) : NULL;
    if (!upstream || !upstream->health)
        return 0;
    static const char *const CIRCUITS[] = {"closed", "open", "half_open"};
    struct health_view view;
    health_read(upstream->health, boot_now_ms(L), &view);
    lua_createtable(L, 0, 9);
    set_health(L, upstream->health);
    set_number(L, "started", (double)view.started);
    set_number(L, "succeeded", (double)view.succeeded);
    set_number(L, "failed", (double)view.failed);
    set_number(L, "failures_in_row", view.failures_in_row);
    set_text(L, "circuit", slice_str(CIRCUITS[view.circuit]));
    return 1;
}

// ---- models

struct model_list {
    lua_State *L;
    int table, seen; // indexes
    int count;
    const struct ctx_key *key;
};

static bool is_listed(const struct ctx_key *key, struct slice model)
{
    if (!key || key->allowed_model_count == 0)
        return true;
    for (size_t i = 0; i < key->allowed_model_count; i++)
        if (catalogue_matches(key->allowed_models[i], model))
            return true;
    return false;
}

static void add_model(struct model_list *list, struct slice id, struct slice owned_by,
                      int64_t created_ms)
{
    lua_State *L = list->L;
    if (id.len == 0 || memchr(id.ptr, '*', id.len) || !is_listed(list->key, id))
        return;
    lua_env_push_slice(L, id);
    lua_rawget(L, list->seen);
    bool is_seen = !lua_isnil(L, -1);
    lua_pop(L, 1);
    if (is_seen)
        return;
    lua_env_push_slice(L, id);
    lua_pushboolean(L, 1);
    lua_rawset(L, list->seen);
    lua_createtable(L, 0, 3);
    set_text(L, "id", id);
    set_text(L, "owned_by", owned_by);
    set_number(L, "created", (double)(created_ms / 1000));
    lua_rawseti(L, list->table, ++list->count);
}

static void add_plugin_models(struct model_list *list, const struct script_generation *generation)
{
    for (size_t i = 0; i < generation->plugin_count; i++) {
        const struct plugin_def *def = generation->plugins[i].def;
        for (size_t n = 0; n < def->model_count; n++)
            add_model(list, def->models[n].id,
                      def->models[n].owned_by.len ? def->models[n].owned_by : slice_str(def->name),
                      generation->set->loaded_ms);
    }
}

static void free_arena(void *arena)
{
    arena_free(arena);
}

// gw.models.list([ctx | key view]) → list of {id, owned_by, created}
static int models_list(lua_State *L)
{
    const struct catalogue *catalogue = catalogue_of(L);
    struct ctx *ctx = ctx_lua_get(L, 1);
    struct ctx_key key = {0};
    const struct ctx_key *used = NULL;
    void **guard = lua_env_guard(L, free_arena);
    if (ctx && ctx->key.id) {
        used = &ctx->key;
    } else if (lua_istable(L, 1)) {
        lua_getfield(L, 1, "id");
        const struct key_entry *entry =
            directory_key_by_id(store_directory(store_of(L)), (int64_t)lua_tonumber(L, -1));
        lua_pop(L, 1);
        struct arena *arena = arena_new(1024);
        *guard = arena;
        if (!arena || (entry && ctx_copy_key(arena, entry, &key) != 0))
            return luaL_error(L, "out of memory");
        used = entry ? &key : NULL;
    }
    lua_newtable(L);
    lua_newtable(L);
    struct model_list list = {L, lua_gettop(L) - 1, lua_gettop(L), 0, used};
    bool has_open = false;
    for (size_t i = 0; catalogue && i < catalogue->upstream_count; i++) {
        const struct upstream *upstream = &catalogue->upstreams[i];
        if (!upstream->is_active || upstream->is_broken || upstream->is_user_account ||
            (used && !key_allows(used, upstream->id)))
            continue;
        has_open = has_open || upstream->model_count == 0;
        for (size_t n = 0; n < upstream->model_count; n++)
            add_model(&list, upstream->models[n].public_name, upstream->provider,
                      upstream->created_ms);
    }
    // An upstream that takes any model serves at least those that have a price.
    for (size_t i = 0; has_open && i < catalogue->price_count; i++)
        add_model(&list, catalogue->prices[i].model, SLICE_LIT("moongate"), 0);
    add_plugin_models(&list, plugin_of(L)->generation);
    lua_env_charge(L, (uint64_t)list.count * 8);
    lua_settop(L, list.table);
    return 1;
}

// ---- prices

static int64_t or_else(int64_t price, int64_t fallback)
{
    return price >= 0 ? price : fallback;
}

// gw.prices.cost(ctx[, {rates in ppm}]) → money, version | nil: no price or no usage
static int prices_cost(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    const struct catalogue *catalogue = catalogue_of(L);
    const struct price *price = catalogue ? catalogue_price(catalogue, ctx->model) : NULL;
    if (!price && catalogue && ctx->upstream.model.len > 0)
        price = catalogue_price(catalogue, ctx->upstream.model);
    if (!price)
        return 0;
    int64_t rates[4];
    size_t rate_count = 0;
    if (lua_istable(L, 2)) {
        rate_count = lua_objlen(L, 2);
        luaL_argcheck(L, rate_count <= 4, 2, "at most four rates");
        for (size_t i = 0; i < rate_count; i++) {
            lua_rawgeti(L, 2, (int)i + 1);
            lua_Number rate = luaL_checknumber(L, -1);
            luaL_argcheck(L, rate >= 0 && rate <= 1e9 && rate == (lua_Number)(int64_t)rate, 2,
                          "a rate is a whole number of ppm");
            rates[i] = (int64_t)rate;
            lua_pop(L, 1);
        }
    }
    const struct usage *usage = &ctx->usage;
    struct money_sum sum = {0};
    int64_t input = or_else(price->input, 0), output = or_else(price->output, 0);
    int64_t write = or_else(price->cache_write_5m, input);
    if (ctx->has_usage) {
        money_sum_add(&sum, usage->input, input);
        money_sum_add(&sum, usage->cache_read, or_else(price->cache_read, input));
        money_sum_add(&sum, usage->cache_write_5m, write);
        money_sum_add(&sum, usage->cache_write_1h, or_else(price->cache_write_1h, write));
        money_sum_add(&sum, usage->audio_in, or_else(price->audio_in, input));
        money_sum_add(&sum, usage->image_in, or_else(price->image_in, input));
        money_sum_add(&sum, usage->output, output);
        money_sum_add(&sum, usage->reasoning, or_else(price->reasoning, output));
        money_sum_add(&sum, usage->audio_out, or_else(price->audio_out, output));
    } else if (price->per_call < 0) {
        return 0;
    }
    if (price->per_call > 0)
        money_sum_add_nano(&sum, price->per_call);
    int64_t nano;
    if (money_sum_round(&sum, rates, rate_count, &nano) != 0)
        return luaL_error(L, "gw.prices.cost: out of range");
    ctx->price_version = price->version;
    lua_money_push(L, nano);
    lua_pushnumber(L, (lua_Number)price->version);
    return 2;
}

static void add_to(struct plugin_rt *plugin, lua_State *L, const char *table,
                   const struct gw_function *functions, size_t count)
{
    lua_getfield(L, -1, table);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_newtable(L);
        lua_pushvalue(L, -1);
        lua_setfield(L, -3, table);
    }
    gw_set_functions(plugin, L, functions, count);
    lua_pop(L, 1);
}

void gw_open_model(struct plugin_rt *plugin, lua_State *L)
{
    static const struct gw_function KEYS[] = {{"authenticate", keys_authenticate, false},
                                              {"find", keys_find, false}};
    static const struct gw_function UPSTREAMS[] = {{"candidates", upstreams_candidates, false},
                                                   {"all", upstreams_all, false},
                                                   {"health", upstreams_health, false}};
    static const struct gw_function MODELS[] = {{"list", models_list, false}};
    static const struct gw_function PRICES[] = {{"cost", prices_cost, false}};
    add_to(plugin, L, "keys", KEYS, 2);
    add_to(plugin, L, "upstreams", UPSTREAMS, 3);
    add_to(plugin, L, "models", MODELS, 1);
    add_to(plugin, L, "prices", PRICES, 1);
}

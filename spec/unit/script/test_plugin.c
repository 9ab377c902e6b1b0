// Plugin sets: what folders say, what is refused and where, settings, secrets, OpenAPI, and the
// shipped set as the default configuration lists it.
#include "script/confload.h"
#include "script/lua_secret.h"
#include "script/plugin.h"
#include "unit/state/store_test.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];
static struct conf *conf;
static struct plugin_set *set;
static struct buf problems;
static struct conf_plugin plugins[8];

static void write_file(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    for (char *slash = strchr(path + strlen(dir) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *out = fopen(path, "w");
    ck_assert_ptr_nonnull(out);
    fputs(text, out);
    fclose(out);
}

static void set_up(void)
{
    strcpy(dir, "/tmp/moongate-plug-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    buf_init(&problems, 65536);
    ck_assert_int_eq(conf_new(&conf), 0);
    conf->dir = slice_str(dir);
    conf->file = SLICE_LIT("gateway.conf.lua");
    static const struct slice dirs[] = {{"plugins", 7}};
    conf->plugin_dirs = (struct conf_list){dirs, 1};
    conf->plugins = plugins;
    memset(plugins, 0, sizeof plugins);
    set = NULL;
}

static void tear_down(void)
{
    char command[128];
    plugin_set_unref(set);
    conf_free(conf);
    buf_free(&problems);
    snprintf(command, sizeof command, "rm -r %s", dir);
    ck_assert_int_eq(system(command), 0);
    unsetenv("MG_SECRET");
}

static int load(const char *const *names)
{
    plugin_set_unref(set);
    set = NULL;
    buf_clear(&problems);
    conf->plugin_count = 0;
    for (; *names; names++)
        plugins[conf->plugin_count++].name = slice_str(*names);
    int err = plugin_set_load(conf, &set, &problems);
    ck_assert_int_eq(buf_append_char(&problems, '\0'), 0);
    return err;
}

static int load_one(const char *text)
{
    write_file("plugins/one/init.lua", text);
    return load((const char *const[]){"one", NULL});
}

static const char *told(void)
{
    return buf_slice(&problems).ptr;
}

#define EXPECT_TOLD(part)                                                                          \
    ck_assert_msg(strstr(told(), part) != NULL, "expected '%s' in: %s", part, told())

static const char *const whole =
    "local helper = require(\"./helper\")\n"
    "local again = require(\"one.helper\")\n"
    "return {\n"
    "  name = \"one\", version = \"1.2.0\", api = 1, about = \"A sample.\",\n"
    "  config = schema.record {\n"
    "    floor = schema.rate { default = 0, max = 1, about = \"lowest\" },\n"
    "    limit = schema.integer { default = 5, min = 1 },\n"
    "    price = schema.decimal { default = \"1.5\" },\n"
    "    wait = schema.duration { default = \"2m\" },\n"
    "    names = schema.list { of = schema.text {}, default = {} },\n"
    "    key = schema.secret { optional = true },\n"
    "  },\n"
    "  needs = { fetch = { \"api.example\" }, db = true, secrets = { \"MG_SECRET\" },\n"
    "    keys = \"read\", logs = \"write\" },\n"
    "  on_error = \"skip\",\n"
    "  init = function(gw, conf) end,\n"
    "  hooks = { select = function(ctx) end, delta = function() end, identify = helper.identify "
    "},\n"
    "  wants = { \"text\", \"tool\" },\n"
    "  routes = {\n"
    "    { \"GET\", \"/one/things\", helper.list, auth = \"admin\", about = \"Lists.\",\n"
    "      query = schema.record { limit = schema.integer { default = 50, max = 100 } } },\n"
    "    { \"PUT\", \"/one/things/{uid}\", helper.put, auth = function() end,\n"
    "      params = { uid = schema.uuid {} }, max_body = 1000,\n"
    "      body = schema.record { name = schema.null_or(schema.text { max = 9 }) },\n"
    "      responses = { [200] = schema.record { ok = schema.boolean {} }, [404] = \"Not here.\" } "
    "},\n"
    "  },\n"
    "  tasks = { { name = \"tick\", every = 1.5, run = function() end },\n"
    "    { name = \"night\", daily = \"02:30\", on = \"cluster\", run = function() end } },\n"
    "  metrics = { { name = \"seen_total\", kind = \"counter\", help = \"h\", labels = { \"a\", "
    "\"b\" } } },\n"
    "  models = { { id = \"toy\" } },\n"
    "  quirks = { acme = { formats = { \"claude\" }, auth = { header = \"X-Api-Key\" },\n"
    "    headers = { [\"X-V\"] = \"1\" }, forward = { \"X-Beta\" },\n"
    "    fields = { drop = { \"a.b\" }, rename = { max_tokens = \"max\" }, default = { store = "
    "false } },\n"
    "    paths = { chat = \"/d/{model}/chat\" }, query = \"v={config.api_version}\",\n"
    "    stream_usage = \"never\", usage = \"exclusive\" } },\n"
    "}\n";

static void write_helper(void)
{
    write_file("plugins/one/helper.lua",
               "return { identify = function() end, list = function() end, put = function() end }");
}

START_TEST(a_whole_plugin_is_read)
{
    write_helper();
    setenv("MG_SECRET", "very-secret-value", 1);
    plugins[0].settings_json = SLICE_LIT("{\"floor\":\"0.25\",\"key\":\"$MG_SECRET\"}");
    ck_assert_msg(load_one(whole) == 0, "%s", told());
    const struct plugin_def *def = plugin_set_def(set, 0);
    ck_assert_str_eq(def->name, "one");
    ck_assert(slice_is(def->version, "1.2.0"));
    ck_assert(!def->denies_on_error && def->has_init && !def->has_close);
    ck_assert_uint_eq(def->hooks, 1u << SCRIPT_SELECT | 1u << SCRIPT_DELTA | 1u << SCRIPT_IDENTIFY);
    ck_assert_uint_eq(def->wants, 1u << EVENT_BLOCK_TEXT | 1u << EVENT_BLOCK_TOOL);
    ck_assert(def->needs.db && def->needs.may_fetch && !def->needs.may_fetch_anywhere);
    ck_assert(slice_is(def->needs.fetch_hosts[0], "api.example"));
    ck_assert_int_eq(def->needs.keys, PLUGIN_ACCESS_READ);
    ck_assert_int_eq(def->needs.logs, PLUGIN_ACCESS_WRITE);
    ck_assert_int_eq(def->needs.upstreams, PLUGIN_ACCESS_NONE);
    ck_assert(slice_is(secret_reveal(plugin_def_secret(def, SLICE_LIT("MG_SECRET"))),
                       "very-secret-value"));
    ck_assert_msg(slice_is(def->config_json,
                           "{\"floor\":0.25,\"key\":\"$MG_SECRET\",\"limit\":5,\"names\":[],"
                           "\"price\":1.5,\"wait\":120}"),
                  "%.*s", SLICE_FMT(def->config_json));
    ck_assert_uint_eq(def->route_count, 2);
    ck_assert_int_eq(def->routes[0].method, HTTP1_GET);
    ck_assert_int_eq(def->routes[0].auth, PLUGIN_AUTH_ADMIN);
    ck_assert_ptr_null(def->routes[0].params);
    ck_assert_ptr_nonnull(def->routes[0].query);
    ck_assert_int_eq(def->routes[1].auth, PLUGIN_AUTH_FUNCTION);
    ck_assert_int_eq(def->routes[1].params->fields[0].schema->kind, SCHEMA_UUID);
    ck_assert_uint_eq(def->routes[1].max_body, 1000);
    ck_assert(def->routes[1].body->fields[0].schema->is_nullable);
    ck_assert_int_eq(def->tasks[0].every_ms, 1500);
    ck_assert_int_eq(def->tasks[0].daily_minute, -1);
    ck_assert_int_eq(def->tasks[1].daily_minute, 150);
    ck_assert_int_eq(def->tasks[1].where, PLUGIN_ON_CLUSTER);
    ck_assert(slice_is(def->metrics[0].full_name, "moongate_one_seen_total"));
    ck_assert(slice_is(def->metrics[0].labels, "a,b"));
    size_t count;
    ck_assert(slice_is(plugin_set_models(set, &count)[0], "toy"));
    ck_assert_uint_eq(count, 1);
    const struct quirk *quirk = plugin_set_quirk(set, SLICE_LIT("acme"));
    ck_assert(quirk->speaks[DIALECT_ANTHROPIC] && !quirk->speaks[DIALECT_OPENAI]);
    ck_assert(slice_is(quirk->auth_header, "x-api-key") && quirk->auth_prefix.len == 0);
    ck_assert(slice_is(quirk->default_headers[0].name, "x-v"));
    ck_assert(slice_is(quirk->forward[0], "x-beta"));
    ck_assert(slice_is(quirk->rename_fields[0].path, "max_tokens"));
    ck_assert(slice_is(quirk->default_fields[0].value, "false"));
    ck_assert(slice_is(quirk->paths[DIALECT_OP_CHAT], "/d/{model}/chat"));
    ck_assert_int_eq(quirk->stream_usage, QUIRK_STREAM_USAGE_NEVER);
    ck_assert(quirk->has_usage_rule && quirk->usage_rule == USAGE_RULE_OPENAI_EXCLUSIVE);
    ck_assert(slice_is(plugin_set_quirk(set, SLICE_LIT("nobody"))->auth_prefix, "Bearer "));
}
END_TEST

// ---- in another state

static const char *const probe =
    "local plugin, conf, trial = ...\n"
    "assert(type(plugin.hooks.select) == 'function')\n"
    "assert(plugin.routes[1].method == 'GET' and type(plugin.routes[1].handler) == 'function')\n"
    "assert(plugin.tasks[2].name == 'night')\n"
    "assert(conf.floor == 250000 and conf.limit == 5 and conf.wait == 120)\n"
    "assert(money.nano_text(conf.price) == '1500000000')\n"
    "assert(type(conf.key) == 'userdata' and json.encode(conf.names) == '[]')\n";

struct state_call {
    struct lua_env *env;
    int err;
    char error[512];
};

static int use_state(lua_State *L)
{
    struct state_call *call = lua_touserdata(L, 1);
    char error[512];
    lua_settop(L, 0);
    call->err =
        plugin_load_into(call->env, L, plugin_set_def(set, 0), call->error, sizeof call->error);
    if (call->err)
        return 0;
    ck_assert_int_eq(lua_gettop(L), 1);
    lua_env_push_sandbox(call->env, L, "probe");
    if (lua_env_compile(call->env, L, slice_str(probe), "=probe", false, 2, error, sizeof error) !=
        0)
        return luaL_error(L, "%s", error);
    lua_pushvalue(L, 1);
    plugin_push_config(L, plugin_set_def(set, 0));
    lua_call(L, 2, 0);
    return 0;
}

START_TEST(a_worker_loads_the_same_texts)
{
    struct lua_env_options options = {.memory_cap = 64 << 20, .instruction_budget = 10000000};
    struct state_call call = {.err = -1};
    char error[512] = "";
    write_helper();
    setenv("MG_SECRET", "very-secret-value", 1);
    plugins[0].settings_json = SLICE_LIT("{\"floor\":0.25,\"key\":\"$MG_SECRET\"}");
    ck_assert_msg(load_one(whole) == 0, "%s", told());
    // The folder may be gone or edited by then.
    write_file("plugins/one/init.lua", "syntax error");
    ck_assert_int_eq(lua_env_new(&options, &call.env, error, sizeof error), 0);
    int err = lua_env_protect(call.env, use_state, &call, error, sizeof error);
    ck_assert_msg(err == 0 && call.err == 0, "%s%s", error, call.error);
    lua_env_free(call.env);
}
END_TEST

// ---- refusals

static const struct {
    const char *text; // after `return {\n  name = "one", api = 1,\n`, closed by }
    const char *want;
} refusals[] = {
    {"  hoks = {},\n",
     "plugins/one/init.lua:3: plugin: unknown field 'hoks' (did you mean 'hooks'?)"},
    {"  hooks = {\n selct = function() end },\n",
     "plugins/one/init.lua:4: hooks: unknown hook 'selct' (did you mean 'select'?)"},
    {"  hooks = { select = 5 },\n", "plugins/one/init.lua:3: hooks.select must be a function"},
    {"  on_error = \"ignore\",\n", "plugins/one/init.lua:3: on_error must be \"deny\" or \"skip\""},
    {"  needs = { databse = true },\n", "unknown field 'databse'"},
    {"  needs = { keys = \"all\" },\n", "needs.keys must be \"read\" or \"write\""},
    {"  needs = { secrets = { \"ADMIN_TOKEN\" } },\n", "ADMIN_TOKEN is the gateway's own"},
    {"  about = 5,\n", "plugins/one/init.lua:3: about must be a string, not a number"},
    {"  routes = {\n\n    { \"GET\", \"/x\", function() end },\n  },\n",
     "plugins/one/init.lua:5: GET /x: auth is missing"},
    {"  routes = { { \"GET\", \"/x\", nil, auth = \"none\" } },\n", "handler must be a function"},
    {"  routes = { { \"FETCH\", \"/x\", print, auth = \"none\" } },\n", "method must be"},
    {"  routes = { { \"GET\", \"x\", print, auth = \"none\" } },\n", "path must start with /"},
    {"  routes = { { \"GET\", \"/x/{a}/{a}\", print, auth = \"none\" } },\n", "names {a} twice"},
    {"  routes = { { \"GET\", \"/x/\", print, auth = \"none\" } },\n", "has an empty segment"},
    {"  routes = { { \"GET\", \"/x\", print, auth = \"all\" } },\n", "auth must be"},
    {"  routes = { { \"GET\", \"/x\", print, auth = \"none\", boddy = 1 } },\n",
     "unknown field 'boddy' (did you mean 'body'?)"},
    {"  routes = { { \"GET\", \"/x\", print, auth = \"none\", body = schema.any {} } },\n",
     "a GET has no body"},
    {"  routes = { { \"GET\", \"/x\", print, auth = \"none\", params = { b = schema.any {} } } "
     "},\n",
     "params.b is not in the path"},
    {"  routes = { { \"GET\", \"/x/{a}\", print, auth = \"none\" },\n"
     "    { \"GET\", \"/x/{b}\", print, auth = \"none\" } },\n",
     "plugins/one/init.lua:4: GET /x/{b}: plugin one has this route already"},
    {"  config = schema.record {\n    a = schema.integr {} },\n", "plugins/one/init.lua:4:"},
    {"  config = schema.record {\n    a = schema.integer { mim = 1 } },\n",
     "plugins/one/init.lua:4: schema.integer: unknown option 'mim'"},
    {"  config = schema.record {\n    a = schema.text { pattern = \"(\" } },\n",
     "plugins/one/init.lua:4: config: pattern: not a regular expression"},
    {"  config = schema.record {\n    a = schema.integer { default = \"x\" } },\n",
     "plugins/one/init.lua:4: config: the default must be a whole number"},
    {"  config = schema.record {\n    a = schema.decimal { min = \"abc\" } },\n",
     "plugins/one/init.lua:4: config: cannot read the limit min"},
    {"  config = { a = 1 },\n", "config must be a schema.record"},
    {"  tasks = { { name = \"t\", run = print } },\n", "needs every = seconds or daily"},
    {"  tasks = { { name = \"t\", every = 0, run = print } },\n", "every must be seconds"},
    {"  tasks = { { name = \"t\", daily = \"25:00\", run = print } },\n",
     "daily must be \"HH:MM\""},
    {"  metrics = { { name = \"x\", kind = \"counter\" } },\n", "a counter's name ends in _total"},
    {"  wants = { \"text\" },\n", "wants is for hooks.delta"},
    {"  migrations = \"../etc\",\n", "migrations must be a folder inside"},
    {"  migrations = \"nowhere/\",\n", "no folder nowhere"},
    {"  quirks = { acme = { format = {} } },\n",
     "plugins/one/init.lua:3: quirks.acme: unknown field 'format' (did you mean 'formats'?)"},
    {"  quirks = { acme = { paths = { chat = \"/{modl}\" } } },\n", "a placeholder must be"},
    {"  quirks = { acme = { forward = { \"Authorization\" } } },\n", "is never forwarded"},
    {"  quirks = { acme = { set_headers = { a = \"x\\r\\ny\" } } },\n", "a text of one line"},
    {"  before = { \"one\" }, x = undeclared_thing,\n", "undeclared global 'undeclared_thing'"},
    {"  x = (function() leaked = 1 end)(),\n", "assignment to undeclared global 'leaked'"},
    {"  x = (function() while true do end end)(),\n", "budget used up"},
    {"  x = require(\"os_things\"),\n", "module 'os_things' not found"},
    {"  x = = 1,\n", "plugins/one/init.lua:3:"},
};

START_TEST(mistakes_are_refused_with_their_place)
{
    char text[1024];
    snprintf(text, sizeof text, "return {\n  name = \"one\", api = 1,\n%s}\n", refusals[_i].text);
    ck_assert_msg(load_one(text) == GW_EINVAL, "%s", text);
    EXPECT_TOLD(refusals[_i].want);
}
END_TEST

START_TEST(heads_are_checked)
{
    ck_assert_int_eq(load_one("return 5\n"), GW_EINVAL);
    EXPECT_TOLD("plugins/one/init.lua:1: init.lua must return the plugin's table");
    ck_assert_int_eq(load_one("return {\n  name = \"two\" }\n"), GW_EINVAL);
    EXPECT_TOLD("plugins/one/init.lua:2: name is 'two', but the plugin is configured as 'one'");
    EXPECT_TOLD("api is missing");
    ck_assert_int_eq(load_one("return { name = \"one\", api = 2 }\n"), GW_EINVAL);
    EXPECT_TOLD("api = 2 is not known");
    ck_assert_int_eq(load((const char *const[]){"nowhere", NULL}), GW_EINVAL);
    EXPECT_TOLD("plugin nowhere: not found in plugins");
    ck_assert_int_eq(load((const char *const[]){"../etc", NULL}), GW_EINVAL);
    EXPECT_TOLD("not a plugin's name");
}
END_TEST

START_TEST(settings_are_checked)
{
    const char *text =
        "return { name = \"one\", api = 1, config = schema.record {\n"
        "  limit = schema.integer { min = 1 }, key = schema.secret { optional = true } } }";
    ck_assert_int_eq(load_one(text), GW_EINVAL);
    EXPECT_TOLD("plugin one: setting 'limit' is required");
    plugins[0].settings_json = SLICE_LIT("{\"limt\":1,\"limit\":0,\"key\":\"sk-plain\"}");
    ck_assert_int_eq(load_one(text), GW_EINVAL);
    EXPECT_TOLD("plugin one: setting 'limt' is not a known field (did you mean 'limit'?)");
    EXPECT_TOLD("plugin one: setting 'limit' must be at least 1");
    EXPECT_TOLD("plugin one: setting 'key' must be a reference to a secret");
    plugins[0].settings_json = SLICE_LIT("{\"limit\":1,\"key\":\"$MG_SECRET\"}");
    ck_assert_int_eq(load_one(text), GW_EINVAL);
    EXPECT_TOLD("plugin one: the settings name the secret $MG_SECRET, which is not set");
    // .env beside the configuration counts.
    write_file(".env", "MG_SECRET=0123456789\n");
    ck_assert_int_eq(load_one(text), 0);
    plugins[0].settings_json = SLICE_LIT("{\"limit\":1}");
    ck_assert_int_eq(load_one("return { name = \"one\", api = 1 }"), GW_EINVAL);
    EXPECT_TOLD("plugin one: it takes no settings, but 'limit' is given");
}
END_TEST

START_TEST(plugins_of_a_set_fit_together)
{
    write_file("plugins/a/init.lua",
               "return { name = \"a\", api = 1, after = { \"b\", \"absent\" },\n"
               "  models = { { id = \"toy\" } }, quirks = { acme = {} },\n"
               "  routes = { { \"GET\", \"/t/{id}\", print, auth = \"none\" } } }");
    write_file("plugins/b/init.lua",
               "return { name = \"b\", api = 1, models = { { id = \"toy\" } },\n"
               "  quirks = { acme = {} },\n"
               "  routes = { { \"GET\", \"/t/{x}\", print, auth = \"none\" },\n"
               "    { \"GET\", \"/t/x\", print, auth = \"none\" } } }");
    write_file("plugins/broken/init.lua", "return { name = \"broken\" }");
    ck_assert_int_eq(load((const char *const[]){"a", "b", "broken", "a", NULL}), GW_EINVAL);
    EXPECT_TOLD("plugins/a/init.lua:1: a has to come after b in the list of plugins");
    EXPECT_TOLD("plugins/b/init.lua:3: GET /t/{x}: plugin a has this route already");
    EXPECT_TOLD("the model toy is plugin a's already");
    EXPECT_TOLD("the provider acme has quirks of plugin a already");
    EXPECT_TOLD("plugins/broken/init.lua:1: api is missing");
    EXPECT_TOLD("plugin a is listed twice");
    ck_assert_ptr_null(strstr(told(), "/t/x:"));
}
END_TEST

START_TEST(unsafe_things_are_warned_about)
{
    plugins[0].is_trusted = true;
    ck_assert_msg(load_one("return { name = \"one\", api = 1,\n"
                           "  needs = { fetch = true, secrets = { \"MG_SECRET\" } },\n"
                           "  routes = {\n    { \"POST\", \"/x\", function() end, auth = \"none\" "
                           "} } }") == 0,
                  "%s", told());
    EXPECT_TOLD("warning: plugin one is trusted");
    EXPECT_TOLD("warning: plugin one may send requests to any public host");
    EXPECT_TOLD("warning: plugin one: the secret MG_SECRET is not set");
    EXPECT_TOLD("warning: plugins/one/init.lua:4: POST /x is open to everybody");
    EXPECT_TOLD("warning: no plugin identifies callers");
    ck_assert_ptr_null(plugin_def_secret(plugin_set_def(set, 0), SLICE_LIT("MG_SECRET")));
}
END_TEST

START_TEST(openapi_has_every_route)
{
    write_helper();
    setenv("MG_SECRET", "very-secret-value", 1);
    ck_assert_msg(load_one(whole) == 0, "%s", told());
    struct buf out = BUF_INIT(0);
    ck_assert_int_eq(plugin_set_openapi(set, &out), 0);
    struct json_doc *doc = NULL;
    const char *why;
    size_t at;
    ck_assert_int_eq(json_parse(buf_slice(&out), 1 << 24, &doc, &why, &at), 0);
    yyjson_val *root = json_root(doc);
    ck_assert_str_eq(yyjson_get_str(yyjson_ptr_get(root, "/openapi")), "3.1.0");
    ck_assert_ptr_nonnull(yyjson_ptr_get(root, "/paths/~1v1~1chat~1completions/post"));
    yyjson_val *put = yyjson_ptr_get(root, "/paths/~1one~1things~1{uid}/put");
    ck_assert_ptr_nonnull(put);
    ck_assert_str_eq(yyjson_get_str(yyjson_ptr_get(put, "/parameters/0/schema/format")), "uuid");
    ck_assert_str_eq(yyjson_get_str(yyjson_ptr_get(put, "/operationId")), "one_put_one_things_uid");
    ck_assert_str_eq(yyjson_get_str(yyjson_ptr_get(put, "/responses/404/description")),
                     "Not here.");
    ck_assert_ptr_nonnull(
        yyjson_ptr_get(put, "/responses/200/content/application~1json/schema/properties/ok"));
    ck_assert_ptr_nonnull(
        yyjson_ptr_get(put, "/requestBody/content/application~1json/schema/properties/name"));
    ck_assert_str_eq(yyjson_get_raw(yyjson_ptr_get(root, "/paths/~1one~1things/get/parameters/0/"
                                                         "schema/maximum")),
                     "100");
    json_doc_free(doc);
    buf_free(&out);
}
END_TEST

START_TEST(references_keep_a_set)
{
    ck_assert_int_eq(load_one("return { name = \"one\", api = 1 }"), 0);
    struct plugin_set *second = plugin_set_ref(set);
    plugin_set_unref(set);
    set = second;
    ck_assert_ptr_nonnull(plugin_set_find(set, SLICE_LIT("one")));
    ck_assert_ptr_null(plugin_set_find(set, SLICE_LIT("two")));
}
END_TEST

START_TEST(the_shipped_plugins_load)
{
    setenv("SECRET_KEY", "b5f0c6d1a9e84723b5f0c6d1a9e84723", 1);
    struct conf *shipped = NULL;
    ck_assert_msg(confload_file(MOONGATE_SOURCE_DIR "/gateway.conf.lua", &shipped, &problems) == 0,
                  "%.*s", SLICE_FMT(buf_slice(&problems)));
    int err = plugin_set_load(shipped, &set, &problems);
    ck_assert_msg(err == 0, "%.*s", SLICE_FMT(buf_slice(&problems)));
    ck_assert_ptr_nonnull(plugin_set_find(set, SLICE_LIT("auth_key")));
    struct buf out = BUF_INIT(0);
    ck_assert_int_eq(plugin_set_openapi(set, &out), 0);
    buf_free(&out);
    conf_free(shipped);
    unsetenv("SECRET_KEY");
}
END_TEST

START_TEST(migrations_are_applied)
{
    struct test_store store;
    const char *text = "return { name = \"one\", api = 1, migrations = \"migrations/\" }";
    test_store_prepare(&store);
    test_store_open(&store);
    write_file("plugins/one/migrations/0001_base.sql",
               "CREATE TABLE p_one_things (id INTEGER PRIMARY KEY) STRICT;");
    ck_assert_msg(load_one(text) == 0, "%s", told());
    ck_assert_msg(plugin_set_migrate(set, store.store, &problems) == 0, "%.*s",
                  SLICE_FMT(buf_slice(&problems)));
    ck_assert_int_eq(plugin_set_migrate(set, store.store, &problems), 0); // nothing to do
    ck_assert_int_eq(test_query(&store, "main.db", "SELECT count(*) FROM p_one_things"), 0);
    write_file("plugins/one/migrations/0002_bad.sql", "CREATE TABLE other (id INTEGER);");
    buf_clear(&problems);
    ck_assert_int_lt(plugin_set_migrate(set, store.store, &problems), 0);
    ck_assert_int_eq(buf_append_char(&problems, '\0'), 0);
    EXPECT_TOLD("plugins/one/init.lua:1:");
    EXPECT_TOLD("0002_bad.sql");
    test_store_end(&store);
}
END_TEST

START_TEST(the_documentation_is_generated)
{
    struct buf out = BUF_INIT(0);
    ck_assert_int_eq(plugin_docs_write(&out), 0);
    ck_assert_int_ge(slice_find(buf_slice(&out), SLICE_LIT("gw.keys.authenticate(ctx)")), 0);
    ck_assert_int_ge(slice_find(buf_slice(&out), SLICE_LIT("| `delta` |")), 0);
    // The committed document is the generated one.
    FILE *in = fopen(MOONGATE_SOURCE_DIR "/docs/plugin-api.md", "r");
    ck_assert_ptr_nonnull(in);
    char *text = malloc(1 << 20);
    size_t len = fread(text, 1, 1 << 20, in);
    fclose(in);
    ck_assert_msg(slice_eq(slice_of(text, len), buf_slice(&out)),
                  "docs/plugin-api.md is old: moongate plugin docs >docs/plugin-api.md");
    free(text);
    buf_free(&out);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("plugin");
    TCase *tc = tcase_create("plugin");
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, a_whole_plugin_is_read);
    tcase_add_test(tc, a_worker_loads_the_same_texts);
    tcase_add_loop_test(tc, mistakes_are_refused_with_their_place, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(tc, heads_are_checked);
    tcase_add_test(tc, settings_are_checked);
    tcase_add_test(tc, plugins_of_a_set_fit_together);
    tcase_add_test(tc, unsafe_things_are_warned_about);
    tcase_add_test(tc, openapi_has_every_route);
    tcase_add_test(tc, references_keep_a_set);
    tcase_add_test(tc, the_shipped_plugins_load);
    tcase_add_test(tc, migrations_are_applied);
    tcase_add_test(tc, the_documentation_is_generated);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(s, tc);
    return s;
}

int main(void)
{
    SRunner *sr = srunner_create(suite());
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

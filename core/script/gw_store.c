// gw.db and the services behind state/admin.h: work for the store's lanes. A lane answers on its
// own thread by a message to this loop. A job that nobody waits for any more is freed when it
// comes back.
#include "base/log.h"
#include "codec/json.h"
#include "script/lua_json.h"
#include "script/lua_money.h"
#include "script/runtime.h"
#include "state/admin.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STATEMENTS 64
#define MAX_ARGS 64
#define MAX_SQL 16384
#define MAX_ROWS 1000
#define HOOK_BUDGET_MS 50
#define ROUTE_BUDGET_MS 2000
#define MAX_REQUEST ((size_t)1 << 20)

// ---- what both kinds of jobs share

struct wait {
    struct async_op op; // first
    struct loop_message message;
    struct list node; // of script->waits
    struct script *script;
    struct loop *loop;
    void (*finish)(struct wait *wait); // completes and frees
};

static void cancel_wait(struct async_op *op)
{
    (void)op; // the lane goes on; deliver frees it
}

static void deliver(struct loop_message *message)
{
    struct wait *wait = list_entry(message, struct wait, message);
    if (wait->script)
        wait->script->jobs--;
    list_remove(&wait->node);
    wait->finish(wait);
}

static void begin(struct wait *wait, struct script *script, const char *name,
                  void (*finish)(struct wait *wait))
{
    wait->op = (struct async_op){.name = name, .cancel = cancel_wait};
    wait->message.deliver = deliver;
    wait->script = script;
    wait->loop = script->options.loop;
    wait->finish = finish;
    list_push_back(&script->waits, &wait->node);
    script->jobs++;
}

void store_waits_orphan(struct script *script)
{
    struct list *node;
    while ((node = list_pop_front(&script->waits)))
        list_entry(node, struct wait, node)->script = NULL;
}

static void take_back(struct wait *wait)
{
    wait->script->jobs--;
    list_remove(&wait->node);
}

// ---- db

struct statement {
    struct slice sql;
    struct db_value *args;
    size_t arg_count;
    int64_t expect_rows; // < 0: any
};

struct db_job {
    struct wait wait; // first
    struct store_job job;
    struct arena *arena;
    struct slice plugin;
    uint32_t budget_ms;
    struct statement *statements;
    size_t count;
    bool is_query;
    struct db_rows rows;
    int64_t changes;
    char text[256];
};

static void free_db_job(void *arg)
{
    struct db_job *job = arg;
    arena_free(job->arena);
    free(job);
}

static int run_statements(struct db *db, struct db_job *job)
{
    for (size_t i = 0; i < job->count; i++) {
        const struct statement *statement = &job->statements[i];
        int err = db_run(db, statement->sql, statement->args, statement->arg_count, job->arena,
                         MAX_ROWS, &job->rows);
        if (err) {
            snprintf(job->text, sizeof job->text, "%s",
                     err == GW_ETOOBIG ? "too many rows" : db_error(db));
            return err;
        }
        int64_t changes = db_changes(db);
        if (!job->is_query && statement->expect_rows >= 0 && changes != statement->expect_rows) {
            snprintf(job->text, sizeof job->text,
                     "statement %zu changed %" PRId64 " rows, not %" PRId64, i + 1, changes,
                     statement->expect_rows);
            return GW_EINVAL;
        }
        job->changes += changes;
    }
    return 0;
}

static int run_db_job(struct db *db, struct store_job *store_job)
{
    struct db_job *job = list_entry(store_job, struct db_job, job);
    db_restrict(db, job->plugin, job->budget_ms);
    int err = run_statements(db, job);
    db_restrict(db, SLICE_NONE, 0);
    return err;
}

static void on_db_done(struct store_job *store_job)
{
    struct db_job *job = list_entry(store_job, struct db_job, job);
    loop_post(job->wait.loop, &job->wait.message);
}

static void push_value(lua_State *L, const struct db_value *value)
{
    char text[32];
    switch (value->kind) {
    case DB_INT:
        if (value->integer > INT64_C(9007199254740992) ||
            value->integer < -INT64_C(9007199254740992)) {
            snprintf(text, sizeof text, "%" PRId64, value->integer); // money.nano reads it
            lua_pushstring(L, text);
        } else {
            lua_pushnumber(L, (lua_Number)value->integer);
        }
        break;
    case DB_REAL: lua_pushnumber(L, value->real); break;
    case DB_TEXT:
    case DB_BLOB: lua_env_push_slice(L, value->bytes); break;
    default: lua_pushnil(L);
    }
}

static int push_db_result(lua_State *L, void *arg)
{
    const struct db_job *job = arg;
    if (job->job.err) {
        lua_pushnil(L);
        lua_pushstring(L, job->text[0]        ? job->text
                          : job->job.error[0] ? job->job.error
                                              : gw_err_name(job->job.err));
        return 2;
    }
    if (!job->is_query) {
        lua_createtable(L, 0, 1);
        lua_pushnumber(L, (lua_Number)job->changes);
        lua_setfield(L, -2, "changes");
        return 1;
    }
    const struct db_rows *rows = &job->rows;
    lua_createtable(L, (int)rows->row_count, 0);
    for (size_t row = 0; row < rows->row_count; row++) {
        lua_createtable(L, 0, (int)rows->column_count);
        for (size_t column = 0; column < rows->column_count; column++) {
            lua_env_push_slice(L, rows->columns[column]);
            push_value(L, &rows->values[row * rows->column_count + column]);
            lua_rawset(L, -3);
        }
        lua_rawseti(L, -2, (int)row + 1);
    }
    return 1;
}

static void finish_db(struct wait *wait)
{
    struct db_job *job = (struct db_job *)wait;
    async_complete(&wait->op, push_db_result, job);
    free_db_job(job);
}

static void read_arg(lua_State *L, int index, struct arena *arena, struct db_value *out)
{
    lua_Number number;
    int64_t nano;
    switch (lua_type(L, index)) {
    case LUA_TNIL: *out = DB_NULL_VALUE; break;
    case LUA_TBOOLEAN: *out = DB_INT_VALUE(lua_toboolean(L, index)); break;
    case LUA_TNUMBER:
        number = lua_tonumber(L, index);
        if (number >= -9007199254740992.0 && number <= 9007199254740992.0 &&
            number == (lua_Number)(int64_t)number)
            *out = DB_INT_VALUE((int64_t)number);
        else
            *out = (struct db_value){.kind = DB_REAL, .real = number};
        break;
    case LUA_TSTRING: *out = DB_TEXT_VALUE(ctx_lua_copy(L, index, arena)); break;
    default:
        if (lua_money_get(L, index, &nano))
            *out = DB_INT_VALUE(nano);
        else if (lua_json_is_null(L, index))
            *out = DB_NULL_VALUE;
        else
            async_error(L, "gw.db: a %s cannot be bound", luaL_typename(L, index));
    }
}

static struct slice read_sql(lua_State *L, int index, struct arena *arena)
{
    if (lua_type(L, index) != LUA_TSTRING)
        async_error(L, "gw.db: the statement is a %s; expected a text", luaL_typename(L, index));
    if (lua_objlen(L, index) > MAX_SQL)
        async_error(L, "gw.db: the statement is longer than %d bytes", MAX_SQL);
    return ctx_lua_copy(L, index, arena);
}

static struct db_value *new_args(lua_State *L, struct arena *arena, size_t count)
{
    if (count > MAX_ARGS)
        async_error(L, "gw.db: more than %d values", MAX_ARGS);
    struct db_value *args = arena_zalloc(arena, (count ? count : 1) * sizeof *args);
    if (!args)
        async_error(L, "out of memory");
    return args;
}

// Leaves a guard on the stack that frees the job when something raises.
static struct db_job *new_db_job(lua_State *L, void ***guard, const char *function)
{
    struct plugin_rt *plugin = plugin_of(L);
    struct coroutine *co = async_check(L, function);
    if (!plugin->def->needs.db)
        gw_refuse(L, function, "db = true");
    *guard = lua_env_guard(L, free_db_job);
    struct db_job *job = calloc(1, sizeof *job);
    if (job)
        job->arena = arena_new(4096);
    if (!job || !job->arena) {
        free(job);
        async_error(L, "out of memory");
        return NULL;
    }
    **guard = job;
    list_node_init(&job->wait.node);
    job->plugin = slice_str(plugin->name);
    job->budget_ms = co->ctx ? HOOK_BUDGET_MS : ROUTE_BUDGET_MS;
    job->job.run = run_db_job;
    job->job.done = on_db_done;
    return job;
}

static int submit(lua_State *L, struct db_job *job, void **guard, const char *name)
{
    struct script *script = generation_of(L)->script;
    begin(&job->wait, script, name, finish_db);
    int err = store_submit(script->options.store, &job->job);
    if (err) {
        take_back(&job->wait);
        lua_pushboolean(L, 0);
        lua_pushnil(L);
        lua_pushstring(L, "the database is busy");
        return 3; // the guard frees the job
    }
    *guard = NULL;
    return async_wait(L, &job->wait.op);
}

static bool is_read(struct slice sql)
{
    struct slice text = slice_trim(sql);
    return (text.len >= 6 && strncasecmp(text.ptr, "select", 6) == 0) ||
           (text.len >= 4 && strncasecmp(text.ptr, "with", 4) == 0);
}

// gw.db.query(sql, …) → rows or nil, err
static int db_query(lua_State *L)
{
    int count = lua_gettop(L) - 1;
    void **guard;
    struct db_job *job = new_db_job(L, &guard, "gw.db.query");
    if (count < 0)
        return async_error(L, "gw.db.query: a statement expected");
    job->statements = arena_zalloc(job->arena, sizeof *job->statements);
    if (!job->statements)
        return async_error(L, "out of memory");
    job->count = 1;
    job->is_query = true;
    struct statement *statement = job->statements;
    statement->sql = read_sql(L, 1, job->arena);
    statement->arg_count = (size_t)count;
    statement->args = new_args(L, job->arena, (size_t)count);
    for (int i = 0; i < count; i++)
        read_arg(L, i + 2, job->arena, &statement->args[i]);
    if (!is_read(statement->sql))
        job->job.lane = STORE_WRITE;
    else
        job->job.lane = co_running(L)->ctx ? STORE_READ_HOOK : STORE_READ_ADMIN;
    return submit(L, job, guard, "db.query");
}

static void read_statement(lua_State *L, int index, struct arena *arena, struct statement *out)
{
    if (!lua_istable(L, index))
        async_error(L, "gw.db.transaction: a list of {sql, args = {…}, expect_rows = n} expected");
    int top = lua_gettop(L);
    lua_rawgeti(L, index, 1);
    out->sql = read_sql(L, top + 1, arena);
    lua_getfield(L, index, "args");
    out->expect_rows = -1;
    if (lua_istable(L, top + 2)) {
        // `n` for lists that hold nil
        lua_getfield(L, top + 2, "n");
        size_t count = lua_isnumber(L, -1) ? (size_t)lua_tointeger(L, -1) : lua_objlen(L, top + 2);
        lua_pop(L, 1);
        out->args = new_args(L, arena, count);
        out->arg_count = count;
        for (size_t i = 0; i < count; i++) {
            lua_rawgeti(L, top + 2, (int)i + 1);
            read_arg(L, lua_gettop(L), arena, &out->args[i]);
            lua_pop(L, 1);
        }
    }
    lua_getfield(L, index, "expect_rows");
    if (lua_isnumber(L, -1))
        out->expect_rows = (int64_t)lua_tointeger(L, -1);
    lua_settop(L, top);
}

// gw.db.transaction{ {sql, args = {…}, expect_rows = 1}, … } → {changes = n} or nil, err
static int db_transaction(lua_State *L)
{
    void **guard;
    if (!lua_istable(L, 1))
        return async_error(L, "gw.db.transaction: a list of statements expected");
    lua_settop(L, 1);
    struct db_job *job = new_db_job(L, &guard, "gw.db.transaction");
    size_t count = lua_objlen(L, 1);
    if (count == 0 || count > MAX_STATEMENTS)
        return async_error(L, "gw.db.transaction: 1 to %d statements", MAX_STATEMENTS);
    job->statements = arena_zalloc(job->arena, count * sizeof *job->statements);
    if (!job->statements)
        return async_error(L, "out of memory");
    job->count = count;
    job->budget_ms = HOOK_BUDGET_MS; // it holds the writer
    job->job.lane = STORE_WRITE;
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, 1, (int)i + 1);
        read_statement(L, lua_gettop(L), job->arena, &job->statements[i]);
        lua_pop(L, 1);
    }
    return submit(L, job, guard, "db.transaction");
}

// ---- trusted services

struct admin_wait {
    struct wait wait; // first
    struct admin_job *job;
};

static void free_admin(void *arg)
{
    struct admin_wait *wait = arg;
    if (wait->job)
        admin_job_free(wait->job);
    free(wait);
}

static void on_admin_done(struct store_job *store_job)
{
    struct admin_job *job = list_entry(store_job, struct admin_job, job);
    struct admin_wait *wait = job->user;
    loop_post(wait->wait.loop, &wait->wait.message);
}

static int push_failure(lua_State *L, const char *code, struct slice message)
{
    lua_pushnil(L);
    lua_createtable(L, 0, 2);
    lua_pushstring(L, code);
    lua_setfield(L, -2, "code");
    lua_env_push_slice(L, message);
    lua_setfield(L, -2, "message");
    return 2;
}

static int push_admin_result(lua_State *L, void *arg)
{
    const struct admin_wait *wait = arg;
    struct admin_job *job = wait->job;
    if (job->job.err) {
        char code[64];
        snprintf(code, sizeof code, "%.*s", SLICE_FMT(job->error_code));
        struct slice message = job->error_message;
        if (!job->error_code.len) {
            static const struct {
                int err;
                const char *code;
            } CODES[] = {{GW_ENOTFOUND, "not_found"}, {GW_EEXISTS, "exists"},
                         {GW_EINVAL, "invalid"},      {GW_EFULL, "busy"},
                         {GW_EBUSY, "busy"},          {GW_ETIMEOUT, "timeout"}};
            snprintf(code, sizeof code, "internal");
            for (size_t i = 0; i < sizeof CODES / sizeof *CODES; i++)
                if (CODES[i].err == job->job.err)
                    snprintf(code, sizeof code, "%s", CODES[i].code);
        }
        if (!message.len)
            message = slice_str(job->job.error[0] ? job->job.error : gw_err_name(job->job.err));
        return push_failure(L, code, message);
    }
    const char *why;
    if (job->result_json.len == 0)
        lua_newtable(L);
    else if (!lua_json_decode(L, job->result_json, &why))
        return push_failure(L, "internal", SLICE_LIT("the answer is too large"));
    return 1;
}

static void finish_admin(struct wait *wait)
{
    async_complete(&wait->op, push_admin_result, wait);
    free_admin(wait);
}

struct service {
    const char *table, *name;
    enum admin_verb verb;
    const char *argument; // what a plain text argument is called; NULL: a table is expected
    size_t access;        // offset in plugin_needs
    bool writes;
    const char *need;
};
#define ACCESS(field) offsetof(struct plugin_needs, field)
static const struct service SERVICES[] = {
    {"keys", "create", ADMIN_KEY_CREATE, NULL, ACCESS(keys), true, "keys = \"write\""},
    {"keys", "list", ADMIN_KEY_LIST, NULL, ACCESS(keys), false, "keys = \"read\""},
    {"keys", "get", ADMIN_KEY_GET, "uid", ACCESS(keys), false, "keys = \"read\""},
    {"keys", "update", ADMIN_KEY_UPDATE, NULL, ACCESS(keys), true, "keys = \"write\""},
    {"keys", "revoke", ADMIN_KEY_REVOKE, "uid", ACCESS(keys), true, "keys = \"write\""},
    {"upstreams", "create", ADMIN_UPSTREAM_CREATE, NULL, ACCESS(upstreams), true,
     "upstreams = \"write\""},
    {"upstreams", "list", ADMIN_UPSTREAM_LIST, NULL, ACCESS(upstreams), false,
     "upstreams = \"read\""},
    {"upstreams", "get", ADMIN_UPSTREAM_GET, "uid", ACCESS(upstreams), false,
     "upstreams = \"read\""},
    {"upstreams", "update", ADMIN_UPSTREAM_UPDATE, NULL, ACCESS(upstreams), true,
     "upstreams = \"write\""},
    {"upstreams", "delete", ADMIN_UPSTREAM_DELETE, "uid", ACCESS(upstreams), true,
     "upstreams = \"write\""},
    {"logs", "list", ADMIN_LOG_LIST, NULL, ACCESS(logs), false, "logs = \"read\""},
    {"logs", "get", ADMIN_LOG_GET, "id", ACCESS(logs), false, "logs = \"read\""},
    {"logs", "prune", ADMIN_LOG_PRUNE, NULL, ACCESS(logs), true, "logs = \"write\""},
    {"logs", "rollups", ADMIN_ROLLUP_LIST, NULL, ACCESS(logs), false, "logs = \"read\""},
    {"prices", "put", ADMIN_PRICE_PUT, NULL, ACCESS(prices), true, "prices = \"write\""},
    {"prices", "list", ADMIN_PRICE_LIST, NULL, ACCESS(prices), false, "prices = \"read\""},
    {"prices", "delete", ADMIN_PRICE_DELETE, "model", ACCESS(prices), true, "prices = \"write\""},
};

// upvalues: plugin, number of the service
static int call_service(lua_State *L)
{
    struct plugin_rt *plugin = plugin_of(L);
    const struct service *service = &SERVICES[lua_tointeger(L, lua_upvalueindex(2))];
    char function[64];
    snprintf(function, sizeof function, "gw.%s.%s", service->table, service->name);
    async_check(L, function);
    enum plugin_access access =
        *(const enum plugin_access *)((const char *)&plugin->def->needs + service->access);
    if (access < (service->writes ? PLUGIN_ACCESS_WRITE : PLUGIN_ACCESS_READ))
        return gw_refuse(L, function, service->need);
    lua_settop(L, 1);
    if (service->argument && lua_isstring(L, 1)) {
        lua_createtable(L, 0, 1);
        lua_pushvalue(L, 1);
        lua_setfield(L, -2, service->argument);
        lua_replace(L, 1);
    } else if (lua_isnil(L, 1)) {
        lua_newtable(L);
        lua_replace(L, 1);
    } else if (!lua_istable(L, 1)) {
        return async_error(L, "%s: a table expected", function);
    }
    struct buf *request = lua_env_buffer(L, MAX_REQUEST);
    lua_json_encode_revealing(L, 1, request);
    void **guard = lua_env_guard(L, free_admin);
    struct admin_wait *wait = calloc(1, sizeof *wait);
    if (!wait)
        return async_error(L, "out of memory");
    *guard = wait;
    list_node_init(&wait->wait.node);
    struct script *script = plugin->generation->script;
    wait->job = admin_job_new(script->options.store, service->verb, buf_slice(request));
    buf_wipe(request);
    if (!wait->job)
        return async_error(L, "out of memory");
    wait->job->user = wait;
    wait->job->job.done = on_admin_done;
    begin(&wait->wait, script, service->name, finish_admin);
    int err = store_submit(script->options.store, &wait->job->job);
    if (err) {
        take_back(&wait->wait);
        lua_pushboolean(L, 0);
        return push_failure(L, "busy", SLICE_LIT("the database is busy")) + 1;
    }
    *guard = NULL;
    return async_wait(L, &wait->wait.op);
}

void gw_open_store(struct plugin_rt *plugin, lua_State *L)
{
    static const struct gw_function DB[] = {{"query", db_query, true},
                                            {"transaction", db_transaction, true}};
    lua_newtable(L);
    gw_set_functions(plugin, L, DB, sizeof DB / sizeof *DB);
    lua_setfield(L, -2, "db");
    for (size_t i = 0; i < sizeof SERVICES / sizeof *SERVICES; i++) {
        lua_getfield(L, -1, SERVICES[i].table);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            lua_newtable(L);
            lua_pushvalue(L, -1);
            lua_setfield(L, -3, SERVICES[i].table);
        }
        lua_pushlightuserdata(L, plugin);
        lua_pushinteger(L, (lua_Integer)i);
        lua_pushcclosure(L, call_service, 2);
        async_wrap(L);
        lua_setfield(L, -2, SERVICES[i].name);
        lua_pop(L, 1);
    }
}

// Tasks of plugins: every N seconds or daily, on each worker or on the first one, never twice at a
// time, ended at their deadline and when their generation is no longer the newest.
#include "base/clock.h"
#include "base/log.h"
#include "script/runtime.h"
#include <stdlib.h>

#define DEFAULT_TIMEOUT_MS 60000u
#define DAY_MS INT64_C(86400000)

struct script_task {
    struct plugin_rt *plugin;
    const struct plugin_task *def;
    size_t index; // in the plugin table's tasks
    struct loop_timer timer, deadline;
    struct coroutine *co;
};

static int push_task(lua_State *L, void *arg)
{
    const struct script_task *task = arg;
    lua_rawgeti(L, LUA_REGISTRYINDEX, task->plugin->table_ref);
    lua_getfield(L, -1, "tasks");
    lua_rawgeti(L, -1, (int)task->index + 1);
    lua_getfield(L, -1, "run");
    lua_rawgeti(L, LUA_REGISTRYINDEX, task->plugin->gw_ref);
    lua_rawgeti(L, LUA_REGISTRYINDEX, task->plugin->conf_ref);
    return 3;
}

static void on_task_end(struct coroutine *co, int err)
{
    struct script_task *task = co->user;
    task->co = NULL;
    loop_timer_stop(&task->deadline);
    if (err)
        plugin_fault(co->plugin, "task", false, co->error);
}

static void schedule(struct script_task *task)
{
    int64_t delay = task->def->every_ms;
    if (delay <= 0) {
        int64_t now = clock_wall_ms();
        int64_t due = now - now % DAY_MS + (int64_t)task->def->daily_minute * 60000;
        delay = due > now ? due - now : due + DAY_MS - now;
    }
    loop_timer_start(&task->timer, (uint64_t)delay);
}

static void on_due(struct loop_timer *timer)
{
    struct script_task *task = list_entry(timer, struct script_task, timer);
    schedule(task);
    if (task->co || task->plugin->is_off)
        return; // no overlap
    const struct co_options options = {
        .plugin = task->plugin, .what = "task", .on_end = on_task_end, .user = task};
    uint64_t timeout =
        task->def->timeout_ms > 0 ? (uint64_t)task->def->timeout_ms : DEFAULT_TIMEOUT_MS;
    loop_timer_start(&task->deadline, timeout);
    if (co_start(&options, push_task, task, &task->co) != 0) {
        loop_timer_stop(&task->deadline);
        log_event(LOG_ERROR, "task_not_started", LOG_STR("plugin", task->plugin->name),
                  LOG_SLICE("task", task->def->name));
    }
}

static void on_deadline(struct loop_timer *timer)
{
    struct script_task *task = list_entry(timer, struct script_task, deadline);
    if (task->co)
        co_fail(task->co, "the task took longer than its timeout");
}

int task_list_build(struct script_generation *generation)
{
    struct script *script = generation->script;
    size_t count = 0;
    for (size_t i = 0; i < generation->plugin_count; i++)
        count += generation->plugins[i].def->task_count;
    if (count == 0)
        return 0;
    generation->tasks = calloc(count, sizeof *generation->tasks);
    if (!generation->tasks)
        return GW_ENOMEM;
    for (size_t i = 0; i < generation->plugin_count; i++) {
        struct plugin_rt *plugin = &generation->plugins[i];
        for (size_t n = 0; n < plugin->def->task_count; n++) {
            const struct plugin_task *def = &plugin->def->tasks[n];
            if (def->where != PLUGIN_ON_WORKER && script->options.worker != 0)
                continue;
            struct script_task *task = &generation->tasks[generation->task_count++];
            task->plugin = plugin;
            task->def = def;
            task->index = n;
            loop_timer_init(script->options.loop, &task->timer, on_due);
            loop_timer_init(script->options.loop, &task->deadline, on_deadline);
        }
    }
    return 0;
}

void task_list_start(struct script_generation *generation)
{
    for (size_t i = 0; i < generation->task_count; i++)
        schedule(&generation->tasks[i]);
}

void task_list_stop(struct script_generation *generation)
{
    for (size_t i = 0; i < generation->task_count; i++) {
        struct script_task *task = &generation->tasks[i];
        loop_timer_stop(&task->timer);
        loop_timer_stop(&task->deadline);
        struct coroutine *co = task->co;
        task->co = NULL;
        if (co)
            co_cancel(co);
    }
}

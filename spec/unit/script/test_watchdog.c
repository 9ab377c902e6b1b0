// The watchdog: names a plugin while it is stuck, ends the process when it stays so, and takes
// nothing for stuck that goes on.
#include "isolation_rig.h"
#include "script/watchdog.h"
#include <signal.h>
#include <sys/wait.h>

static _Atomic int ends;
static char last_message[400];

static void note_end(const char *message)
{
    snprintf(last_message, sizeof last_message, "%s", message);
    atomic_fetch_add(&ends, 1);
}

static void up(void)
{
    iso_up();
    log_set_level(LOG_WARN);
    atomic_store(&ends, 0);
    watchdog_set_end(note_end);
    const struct watchdog_options options = {.slow_ms = 60, .stuck_ms = 200};
    ck_assert_int_eq(watchdog_start(&options), 0);
}

static void down(void)
{
    watchdog_stop();
    watchdog_set_end(NULL);
    iso_down();
}

static void wait_for(int wanted)
{
    for (int i = 0; i < 5000 && atomic_load(&ends) < wanted; i++)
        usleep(1000);
    ck_assert_int_ge(atomic_load(&ends), wanted);
}

START_TEST(stuck_is_named_then_ends_the_process)
{
    struct watchdog_slot *slot = watchdog_slot_take(0);
    ck_assert_ptr_nonnull(slot);
    watchdog_set_work(slot, (struct watchdog_work){watchdog_name("sleepy"), "admit"});
    watchdog_enter(slot);
    wait_for(1);
    watchdog_leave(slot);
    watchdog_slot_drop(slot);
    ck_assert_int_eq(iso_log_count("\"event\":\"plugin_stuck\"", "\"plugin\":\"sleepy\""), 1);
    ck_assert_int_ge(iso_log_count("\"event\":\"plugin_stuck_end\"", "\"in\":\"admit\""), 1);
    ck_assert(strstr(last_message, "\"sleepy\"") && strstr(last_message, "lua.stuck_ms"));
}
END_TEST

START_TEST(many_short_entries_are_not_stuck)
{
    struct watchdog_slot *slot = watchdog_slot_take(0);
    watchdog_set_work(slot, (struct watchdog_work){watchdog_name("busy"), "admit"});
    for (int i = 0; i < 400; i++) {
        watchdog_enter(slot);
        usleep(1000);
        watchdog_leave(slot);
    }
    watchdog_slot_drop(slot);
    ck_assert_int_eq(atomic_load(&ends), 0);
    ck_assert_int_eq(iso_log_count("plugin_stuck", NULL), 0);
}
END_TEST

START_TEST(names_are_kept_once)
{
    char name[20] = "twice";
    const char *first = watchdog_name(name);
    ck_assert_ptr_eq(first, watchdog_name("twice"));
    name[0] = 'x';
    ck_assert_str_eq(first, "twice");
    ck_assert_ptr_ne(first, watchdog_name("other"));
}
END_TEST

static uint64_t cpu_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

// Spins in C as a library function of a plugin would: no instruction of Lua, so no hook. Until the
// watchdog has said so, and then until it has seen more than the budget of CPU time, however little
// of a core this thread gets: each look at a stuck entry says so again.
static int spin(lua_State *L)
{
    (void)L;
    while (atomic_load(&ends) < 1)
        continue;
    for (uint64_t from = cpu_ms(); cpu_ms() - from < 60;)
        continue;
    for (int seen = atomic_load(&ends); atomic_load(&ends) < seen + 2;)
        continue;
    return 0;
}

START_TEST(a_plugin_inside_one_c_call_is_named)
{
    iso_plugins(NULL, "hooks = { admit = function(ctx) ctx.vars.spin() end }", "deny");
    struct ctx *ctx = bench_begin();
    lua_State *L = lua_env_state(bench.script->current->env);
    ck_assert_int_eq(ctx_lua_make(ctx), 0);
    lua_newtable(L); // vars = { { spin = spin } }
    lua_newtable(L);
    lua_pushcfunction(L, spin);
    lua_setfield(L, -2, "spin");
    lua_rawseti(L, -2, 1);
    ctx->lua_vars = luaL_ref(L, LUA_REGISTRYINDEX);
    iso_log_clear();
    enum script_outcome outcome = bench_hook(ctx, SCRIPT_ADMIT);
    ck_assert_int_ge(atomic_load(&ends), 1);
    ck_assert_int_eq(iso_log_count("\"event\":\"plugin_stuck\"", "\"plugin\":\"bad\""), 1);
    ck_assert(strstr(last_message, "\"bad\"") && strstr(last_message, "stuck in admit"));
    // It was over its time, so it is ended where Lua goes on.
#if defined(MOONGATE_ASAN) || defined(MOONGATE_TSAN)
    (void)outcome; // a budget of a second
#else
    ck_assert_int_eq(outcome, SCRIPT_DENIED);
#endif
    bench_end(ctx);
    iso_expect_healthy("after");
}
END_TEST

START_TEST(the_process_ends_with_the_name)
{
    // In a child: what the default does.
    int pipes[2], status = 0;
    ck_assert_int_eq(pipe(pipes), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        // Only this thread came along: the watchdog's state is as before its start but counted.
        dup2(pipes[1], 2);
        close(pipes[0]);
        execl("/proc/self/exe", "test_watchdog", "stuck", (char *)NULL);
        _exit(127);
    }
    close(pipes[1]);
    char text[4000];
    size_t len = 0;
    ssize_t n;
    while (len < sizeof text - 1 && (n = read(pipes[0], text + len, sizeof text - 1 - len)) > 0)
        len += (size_t)n;
    text[len] = '\0';
    close(pipes[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %d: %s", status,
                  text);
    ck_assert_msg(strstr(text, "the plugin \"looper\" has been stuck in route"), "%s", text);
}
END_TEST

static int be_stuck(void)
{
    const struct watchdog_options options = {.slow_ms = 50, .stuck_ms = 100};
    if (watchdog_start(&options) != 0)
        return 1;
    struct watchdog_slot *slot = watchdog_slot_take(40);
    watchdog_set_work(slot, (struct watchdog_work){watchdog_name("looper"), "route"});
    watchdog_enter(slot);
    for (int i = 0; i < 20000; i++)
        usleep(1000);
    return 1;
}

START_TEST(zero_is_never)
{
    const struct watchdog_options options = {.slow_ms = 0, .stuck_ms = 0};
    ck_assert_int_eq(watchdog_start(&options), 0);
    struct watchdog_slot *slot = watchdog_slot_take(0);
    watchdog_enter(slot);
    usleep(400000);
    watchdog_leave(slot);
    watchdog_slot_drop(slot);
    ck_assert_int_eq(atomic_load(&ends), 0);
    ck_assert_int_eq(iso_log_count("plugin_stuck", NULL), 0);
    watchdog_stop();
}
END_TEST

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "stuck") == 0)
        return be_stuck();
    TCase *tcase = tcase_create("watchdog");
    tcase_add_checked_fixture(tcase, up, down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, stuck_is_named_then_ends_the_process);
    tcase_add_test(tcase, many_short_entries_are_not_stuck);
    tcase_add_test(tcase, names_are_kept_once);
    tcase_add_test(tcase, a_plugin_inside_one_c_call_is_named);
    tcase_add_test(tcase, the_process_ends_with_the_name);
    tcase_add_test(tcase, zero_is_never);
    return bench_run(&tcase, 1, "watchdog");
}

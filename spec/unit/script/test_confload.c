// gateway.conf.lua → struct conf: keys, sources, messages with lines, .env, includes, plugins.
#include "script/confload.h"
#include "script/confload_env.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY "kQvJ3nY0x1bq8H1m7F4d2s9a6w5e3r2t1y0u9i8o7p8="
#define SECRET "b5f0c6d1a9e84723b5f0c6d1a9e84723"

static char dir[64];
static struct conf *conf;
static struct buf problems;

static void write_file(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *out = fopen(path, "w");
    ck_assert_ptr_nonnull(out);
    fputs(text, out);
    fclose(out);
}

static void set_up(void)
{
    static const char *const names[] = {
        "ENCRYPTION_KEY", "ENCRYPTION_KEY_FILE", "SECRET_KEY",   "JWT_SECRET_KEY", "PORT",
        "HOST",           "UPSTREAMS",           "CORS_ORIGINS", "MG_TEST",        "ADMIN_TOKEN",
        "LOG_LEVEL",      "CREDIT_USD",          "EPAY_KEY",     "DATABASE_URL",   "WORKERS"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unsetenv(names[i]);
    strcpy(dir, "/tmp/moongate-conf-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    buf_init(&problems, 65536);
    conf = NULL;
}

static void tear_down(void)
{
    char command[128];
    conf_free(conf);
    buf_free(&problems);
    snprintf(command, sizeof command, "rm -r %s", dir);
    ck_assert_int_eq(system(command), 0);
}

static int load(const char *text)
{
    char path[128];
    conf_free(conf);
    conf = NULL;
    buf_clear(&problems);
    write_file("gateway.conf.lua", text);
    snprintf(path, sizeof path, "%s/gateway.conf.lua", dir);
    int err = confload_file(path, &conf, &problems);
    ck_assert_int_eq(buf_append_char(&problems, '\0'), 0);
    return err;
}

static const char *told(void)
{
    return buf_slice(&problems).ptr;
}

#define EXPECT_TOLD(part)                                                                          \
    ck_assert_msg(strstr(told(), part) != NULL, "expected '%s' in: %s", part, told())
#define EXPECT_SLICE(got, want)                                                                    \
    ck_assert_msg(slice_is(got, want), "got '%.*s', not '%s'", SLICE_FMT(got), want)

START_TEST(keys_are_set_by_path)
{
    ck_assert_msg(load("return { listen = { host = \"::1\", port = 9000 }, workers = 2,\n"
                       "  cors_origins = { \"https://a.example\", \"https://b.example\" },\n"
                       "  trusted_proxies = \"10.0.0.0/8, ::1\", credit_usd = \"0.5\",\n"
                       "  keepalive = 1.5, allow_registration = false,\n"
                       "  limits = { body_bytes = 2048 }, allowed_private_hosts = {} }") == 0,
                  "%s", told());
    EXPECT_SLICE(conf->host, "::1");
    ck_assert_int_eq(conf->port, 9000);
    ck_assert_int_eq(conf->workers, 2);
    ck_assert_uint_eq(conf->cors_origins.count, 2);
    EXPECT_SLICE(conf->trusted_proxies.items[1], "::1");
    ck_assert_int_eq(conf->credit_usd, 500000000);
    ck_assert_int_eq(conf->keepalive_ms, 1500);
    ck_assert(!conf->allow_registration);
    ck_assert_int_eq(conf->body_bytes, 2048);
    ck_assert_uint_eq(conf->allowed_private_hosts.count, 0);
}
END_TEST

START_TEST(unknown_keys_are_errors_with_line_and_suggestion)
{
    ck_assert_int_eq(load("return {\n  workers = 1,\n  limts = { body_bytes = 5000 },\n"
                          "  wrokers = 2,\n}"),
                     GW_EINVAL);
    EXPECT_TOLD("gateway.conf.lua:3: unknown key 'limts.body_bytes' (did you mean "
                "'limits.body_bytes'?)");
    EXPECT_TOLD("gateway.conf.lua:4: unknown key 'wrokers' (did you mean 'workers'?)");
}
END_TEST

START_TEST(bad_values_say_the_line_and_the_limits)
{
    ck_assert_int_eq(load("return {\n  listen = {\n    port = 70000,\n  },\n"
                          "  app_name = true,\n  cors_origins = { \"a,b\" },\n}"),
                     GW_EINVAL);
    EXPECT_TOLD("gateway.conf.lua:3: listen.port must be a whole number from 0 to 65535");
    EXPECT_TOLD("gateway.conf.lua:5: app_name must be a text, not a boolean");
    EXPECT_TOLD("gateway.conf.lua:6: cors_origins[1] must not hold a comma");
}
END_TEST

START_TEST(lua_errors_have_their_line)
{
    ck_assert_int_eq(load("return {\n  port = = 1,\n}"), GW_EINVAL);
    EXPECT_TOLD("gateway.conf.lua:2:");
    ck_assert_int_eq(load("local x = nil\nreturn { app_name = x.y }"), GW_EINVAL);
    EXPECT_TOLD("gateway.conf.lua:2:");
    ck_assert_int_eq(load("return os.getenv(\"HOME\")"), GW_EINVAL);
    ck_assert_int_eq(load("return io.open(\"/etc/passwd\")"), GW_EINVAL);
    EXPECT_TOLD("undeclared global 'io'");
    ck_assert_int_eq(load("while true do end"), GW_EINVAL);
    EXPECT_TOLD("budget used up");
    ck_assert_int_eq(load("return 5"), GW_EINVAL);
    EXPECT_TOLD("must return a table");
}
END_TEST

START_TEST(a_missing_file_is_named)
{
    buf_clear(&problems);
    ck_assert_int_eq(confload_file("/nowhere/gateway.conf.lua", &conf, &problems), GW_ENOTFOUND);
    ck_assert_int_eq(buf_append_char(&problems, '\0'), 0);
    EXPECT_TOLD("/nowhere/gateway.conf.lua: there is no such file");
}
END_TEST

START_TEST(the_environment_beats_dot_env)
{
    write_file(".env", "# comment\nexport HOST=10.1.1.1\nPORT=7000 # not 80\n"
                       "APP='it # works'\nQUOTED=\"a\\nb\"\nEMPTY=\n");
    setenv("PORT", "7100", 1);
    ck_assert_msg(load("return { listen = { host = env(\"HOST\"), port = env(\"PORT\", 1) },\n"
                       "app_name = env(\"APP\"), public_url = env(\"EMPTY\", \"http://x\"),\n"
                       "workers = env(\"NOT_SET_ANYWHERE\") }") == 0,
                  "%s", told());
    EXPECT_SLICE(conf->host, "10.1.1.1");
    ck_assert_int_eq(conf->port, 7100);
    EXPECT_SLICE(conf->app_name, "it # works");
    EXPECT_SLICE(conf->public_url, "http://x");
    write_file(".env", "GOOD=1\nnot a line\nBAD=\"open\n");
    ck_assert_int_eq(load("return {}"), GW_EINVAL);
    EXPECT_TOLD(".env:2: NAME=value expected");
    EXPECT_TOLD(".env:3: the quote is not closed");
}
END_TEST

START_TEST(required_secrets_come_from_the_environment_when_the_file_is_silent)
{
    char why[256];
    setenv("ENCRYPTION_KEY", KEY, 1);
    setenv("JWT_SECRET_KEY", SECRET, 1);
    ck_assert_msg(load("return {}") == 0, "%s", told());
    ck_assert(slice_is(secret_reveal(conf->encryption_key), KEY));
    ck_assert(slice_is(secret_reveal(conf->secret_key), SECRET));
    ck_assert_msg(conf_check(conf, why, sizeof why) == 0, "%s", why);
    // The file decides when it speaks; a port it does not name is not taken from the environment.
    setenv("PORT", "7100", 1);
    ck_assert_msg(load("return { secret_key = secret(\"MG_TEST\") or \"" SECRET "x\" }") == 0, "%s",
                  told());
    ck_assert(slice_is(secret_reveal(conf->secret_key), SECRET "x"));
    ck_assert_int_eq(conf->port, 8000);
}
END_TEST

START_TEST(plugins_have_settings_and_references)
{
    setenv("EPAY_KEY", "not-for-eyes", 1);
    ck_assert_msg(load("return { plugins = { \"demo\",\n"
                       "  { name = \"pay\", path = \"my/pay\", trusted = true,\n"
                       "    key = secret(\"EPAY_KEY\"), deep = { list = { 1, 2 } } } } }") == 0,
                  "%s", told());
    ck_assert_uint_eq(conf->plugin_count, 2);
    EXPECT_SLICE(conf->plugins[0].name, "demo");
    EXPECT_SLICE(conf->plugins[0].settings_json, "{}");
    EXPECT_SLICE(conf->plugins[1].path, "my/pay");
    ck_assert(conf->plugins[1].is_trusted && !conf->plugins[0].is_trusted);
    ck_assert_int_ge(slice_find(conf->plugins[1].settings_json, SLICE_LIT("\"key\":\"$EPAY_KEY\"")),
                     0);
    ck_assert_int_ge(slice_find(conf->plugins[1].settings_json, SLICE_LIT("\"list\":[1,2]")), 0);
    ck_assert_int_eq(load("return {\n plugins = {\n { nam = \"x\" } } }"), GW_EINVAL);
    EXPECT_TOLD("plugins[1] must be a name");
    ck_assert_int_eq(load("return { plugins = { { name = \"x\", f = function() end } } }"),
                     GW_EINVAL);
}
END_TEST

START_TEST(upstreams_are_a_list_or_json)
{
    setenv("MG_TEST", "sk-upstream", 1);
    ck_assert_msg(load("return { upstreams = { { name = \"a\", api_key = secret(\"MG_TEST\"),\n"
                       "models = { \"gpt-4\" } } } }") == 0,
                  "%s", told());
    ck_assert_int_ge(slice_find(conf->upstreams_json, SLICE_LIT("\"api_key\":\"sk-upstream\"")), 0);
    setenv("UPSTREAMS", "[{\"name\":\"b\"}]", 1);
    ck_assert_int_eq(load("return { upstreams = secret(\"UPSTREAMS\") }"), 0);
    EXPECT_SLICE(conf->upstreams_json, "[{\"name\":\"b\"}]");
    setenv("UPSTREAMS", "{\"name\":1}", 1);
    ck_assert_int_eq(load("return { upstreams = env(\"UPSTREAMS\") }"), GW_EINVAL);
    EXPECT_TOLD("upstreams must be a JSON array");
}
END_TEST

START_TEST(files_and_includes_start_at_the_folder)
{
    char path[128];
    snprintf(path, sizeof path, "%s/conf.d", dir);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    write_file("conf.d/10-port.lua", "return { listen = { port = 1234 }, app_name = \"A\" }");
    write_file("conf.d/20-name.lua", "return { app_name = \"B\", workers = env(\"W\", 3) }");
    write_file("token", "abc-def-ghi-jkl-mno-pqr\n");
    ck_assert_msg(
        load("include(\"conf.d/*.lua\")\nreturn { listen = { host = \"::1\", port = 1,"
             " tls_cert = \"a.pem\", tls_key = \"/k/a.key\" }, admin_token = file(\"token\") }") ==
            0,
        "%s", told());
    ck_assert_int_eq(conf->port, 1234);
    EXPECT_SLICE(conf->host, "::1");
    EXPECT_SLICE(conf->app_name, "B");
    ck_assert_int_eq(conf->workers, 3);
    ck_assert(slice_is(secret_reveal(conf->admin_token), "abc-def-ghi-jkl-mno-pqr"));
    // Relative paths start in the file's folder, once.
    struct slice joined;
    snprintf(path, sizeof path, "%s/data/control.sock", dir);
    EXPECT_SLICE(conf->control_path, path);
    snprintf(path, sizeof path, "%s/a.pem", dir);
    EXPECT_SLICE(conf->tls_cert, path);
    EXPECT_SLICE(conf->tls_key, "/k/a.key");
    snprintf(path, sizeof path, "%s/data/control.sock", dir);
    ck_assert_int_eq(conf_path(conf, conf->control_path, &joined), 0);
    EXPECT_SLICE(joined, path);
    write_file("conf.d/30-bad.lua", "return {\n  app_nme = 1 }");
    ck_assert_int_eq(load("include(\"conf.d/*.lua\")\nreturn {}"), GW_EINVAL);
    EXPECT_TOLD("30-bad.lua:2: unknown key 'app_nme'");
}
END_TEST

START_TEST(dump_tells_sources_and_hides_secrets)
{
    char path[128];
    struct buf out = BUF_INIT(65536);
    setenv("SECRET_KEY", SECRET, 1);
    setenv("PORT", "7100", 1);
    setenv("UPSTREAMS", "[{\"api_key\":\"sk-hidden-0\"}]", 1);
    write_file(".env", "ADMIN_TOKEN=hidden-token-0123456789\n");
    ck_assert_int_eq(load("return { listen = { port = env(\"PORT\") }, workers = 3,\n"
                          "admin_token = secret(\"ADMIN_TOKEN\"), upstreams = env(\"UPSTREAMS\"),\n"
                          "plugins = { { name = \"demo\", a = 1 } } }"),
                     0);
    snprintf(path, sizeof path, "%s/gateway.conf.lua", dir);
    ck_assert_int_eq(confload_dump(path, &out, &problems), 0);
    ck_assert_int_eq(buf_append_char(&out, '\0'), 0);
    const char *text = buf_slice(&out).ptr;
    ck_assert_ptr_nonnull(strstr(text, "listen.port = 7100  # env PORT\n"));
    ck_assert_ptr_nonnull(strstr(text, "workers = 3  # file\n"));
    ck_assert_ptr_nonnull(strstr(text, "listen.host = \"127.0.0.1\"  # default\n"));
    ck_assert_ptr_nonnull(strstr(text, "# .env ADMIN_TOKEN\n"));
    ck_assert_ptr_nonnull(strstr(text, "# env SECRET_KEY\n"));
    ck_assert_ptr_nonnull(strstr(text, "settings {\"a\":1}"));
    ck_assert_ptr_null(strstr(text, "hidden"));
    ck_assert_ptr_null(strstr(text, SECRET));
    buf_free(&out);
}
END_TEST

START_TEST(plugin_dirs_end_with_the_shipped_folder)
{
    ck_assert_int_eq(load("return {}"), 0);
    ck_assert_uint_eq(conf->plugin_dirs.count, 2);
    EXPECT_SLICE(conf->plugin_dirs.items[0], "plugins");
    ck_assert(slice_ends(conf->plugin_dirs.items[1], "/plugins"));
    ck_assert_int_eq(load("return { plugin_dirs = { \"mine\" } }"), 0);
    EXPECT_SLICE(conf->plugin_dirs.items[0], "mine");
    ck_assert_uint_eq(conf->plugin_dirs.count, 2);
}
END_TEST

START_TEST(the_shipped_file_loads)
{
    setenv("ENCRYPTION_KEY", KEY, 1);
    setenv("SECRET_KEY", SECRET, 1);
    ck_assert_msg(confload_file(MOONGATE_SOURCE_DIR "/gateway.conf.lua", &conf, &problems) == 0,
                  "%.*s", SLICE_FMT(buf_slice(&problems)));
    EXPECT_SLICE(conf->host, "127.0.0.1");
    ck_assert_int_eq(conf->port, 8000);
    ck_assert_uint_ge(conf->plugin_count, 12);
    EXPECT_SLICE(conf->plugins[0].name, "health");
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("confload");
    TCase *tc = tcase_create("confload");
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, keys_are_set_by_path);
    tcase_add_test(tc, unknown_keys_are_errors_with_line_and_suggestion);
    tcase_add_test(tc, bad_values_say_the_line_and_the_limits);
    tcase_add_test(tc, lua_errors_have_their_line);
    tcase_add_test(tc, a_missing_file_is_named);
    tcase_add_test(tc, the_environment_beats_dot_env);
    tcase_add_test(tc, required_secrets_come_from_the_environment_when_the_file_is_silent);
    tcase_add_test(tc, plugins_have_settings_and_references);
    tcase_add_test(tc, upstreams_are_a_list_or_json);
    tcase_add_test(tc, files_and_includes_start_at_the_folder);
    tcase_add_test(tc, dump_tells_sources_and_hides_secrets);
    tcase_add_test(tc, plugin_dirs_end_with_the_shipped_folder);
    tcase_add_test(tc, the_shipped_file_loads);
    tcase_set_timeout(tc, 60);
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

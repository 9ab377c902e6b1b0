// The configuration: defaults, limits, suggestions, and the checks at start.
#include "base/money.h"
#include "codec/fernet.h"
#include "state/conf.h"
#include "state_test.h"

#define KEY "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="

static char why[256];

static int set(struct conf *conf, const char *path, const char *text)
{
    const struct conf_key *key = conf_key_find(slice_str(path));
    ck_assert_msg(key != NULL, "%s", path);
    return conf_set(conf, key, slice_str(text), why, sizeof(why));
}

static struct conf *good(void)
{
    struct conf *conf = NULL;
    ck_assert_int_eq(conf_new(&conf), 0);
    ck_assert_int_eq(set(conf, "encryption_key", KEY), 0);
    ck_assert_int_eq(set(conf, "secret_key", "k3Jd8s0PqLx72mNvB5tYwZ1cR4hG6fUa"), 0);
    int err = conf_check(conf, why, sizeof(why));
    ck_assert_msg(err == 0, "%s", why);
    return conf;
}

START_TEST(defaults_are_those_of_the_table)
{
    struct conf *conf = NULL;
    ck_assert_int_eq(conf_new(&conf), 0);
    ck_assert_int_eq(conf->port, 8000);
    ck_assert(slice_is(conf->host, "127.0.0.1"));
    ck_assert_int_eq(conf->hold_head_ms, 15000);
    ck_assert(conf->access_log && conf->allow_registration);
    ck_assert_int_eq(conf->credit_usd, MONEY_USD);
    ck_assert_ptr_null(conf->secret_key);
    ck_assert_uint_eq(conf->cors_origins.count, 0);
    size_t count = 0;
    const struct conf_key *keys = conf_keys(&count);
    struct arena *arena = arena_new(4096);
    // Every default is within its own limits: what is shown can be set again.
    for (size_t i = 0; i < count; i++) {
        struct slice text;
        ck_assert_int_eq(conf_render(conf, &keys[i], arena, &text), 0);
        ck_assert_ptr_eq(conf_key_find(slice_str(keys[i].path)), &keys[i]);
        if (text.len >= 2 && text.ptr[0] == '"')
            text = slice_of(text.ptr + 1, text.len - 2);
        if (keys[i].type == CONF_TYPE_LIST || keys[i].type == CONF_TYPE_SECRET)
            continue;
        int err = conf_set(conf, &keys[i], text, why, sizeof(why));
        ck_assert_msg(err == 0, "%s: %s", keys[i].path, why);
        for (size_t k = 0; k < i; k++) {
            ck_assert_str_ne(keys[k].path, keys[i].path);
            ck_assert(!keys[i].env[0] || strcmp(keys[k].env, keys[i].env) != 0);
        }
    }
    arena_free(arena);
    conf_free(conf);
}
END_TEST

START_TEST(values_are_read_by_their_type)
{
    struct conf *conf = good();
    ck_assert_int_eq(set(conf, "listen.port", "80"), 0);
    ck_assert_int_eq(conf->port, 80);
    ck_assert_int_eq(set(conf, "limits.body_bytes", "1e6"), 0);
    ck_assert_int_eq(conf->body_bytes, 1000000);
    ck_assert_int_eq(set(conf, "hold_head", "0.25"), 0);
    ck_assert_int_eq(conf->hold_head_ms, 250);
    ck_assert_int_eq(set(conf, "log.access", "off"), 0);
    ck_assert(!conf->access_log);
    ck_assert_int_eq(set(conf, "credit_usd", "0.5"), 0);
    ck_assert_int_eq(conf->credit_usd, MONEY_USD / 2);
    ck_assert_int_eq(set(conf, "cors_origins", " https://a.x , ,https://b.x,"), 0);
    ck_assert_uint_eq(conf->cors_origins.count, 2);
    ck_assert(slice_is(conf->cors_origins.items[1], "https://b.x"));
    static const struct {
        const char *path, *text, *reason;
    } bad[] = {
        {"listen.port", "65536", "from 0 to 65535"},
        {"listen.port", "-1", "from 0 to 65535"},
        {"listen.port", "80x", "from 0 to 65535"},
        {"listen.port", "", "from 0 to 65535"},
        {"listen.port", "1.5", "from 0 to 65535"},
        {"limits.body_bytes", "99999999999999999999", "from 1024 to 1073741824"},
        {"hold_head", "0.05", "from 0.1 to 300"},
        {"hold_head", "0.2505", "from 0.1 to 300"},
        {"hold_head", "soon", "seconds"},
        {"log.access", "maybe", "true or false"},
        {"credit_usd", "0", "above 0"},
        {"credit_usd", "-1", "above 0"},
        {"durability", "none", "power, process"},
        {"disconnect", "close", "cancel, drain"},
        {"unpriced_models", "x", "deny, free"},
        {"log.level", "verbose", "debug, info, warn, error"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(set(conf, bad[i].path, bad[i].text), GW_EINVAL);
        ck_assert_msg(strstr(why, bad[i].reason) && strstr(why, bad[i].path), "%s", why);
    }
    struct slice text;
    struct arena *arena = arena_new(4096);
    ck_assert_int_eq(conf_render(conf, conf_key_find(SLICE_LIT("hold_head")), arena, &text), 0);
    ck_assert(slice_is(text, "0.25"));
    ck_assert_int_eq(conf_render(conf, conf_key_find(SLICE_LIT("secret_key")), arena, &text), 0);
    ck_assert(slice_is(text, "\"***\""));
    ck_assert_int_eq(conf_render(conf, conf_key_find(SLICE_LIT("admin_token")), arena, &text), 0);
    ck_assert(slice_is(text, "nil"));
    ck_assert_int_eq(conf_render(conf, conf_key_find(SLICE_LIT("cors_origins")), arena, &text), 0);
    ck_assert(slice_is(text, "{ \"https://a.x\", \"https://b.x\" }"));
    arena_free(arena);
    conf_free(conf);
}
END_TEST

START_TEST(a_near_key_is_suggested)
{
    static const struct {
        const char *text, *path;
    } cases[] = {
        {"listen.prot", "listen.port"},  {"port", "listen.port"},
        {"databse_url", "database_url"}, {"DATABASE_URL", "database_url"},
        {"hold-head", "hold_head"},      {"limits.bodybytes", "limits.body_bytes"},
        {"zzzzzzzzzzzz", NULL},          {"", NULL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *found = conf_key_suggest(slice_str(cases[i].text));
        if (cases[i].path)
            ck_assert_msg(found && strcmp(found, cases[i].path) == 0, "%s: %s", cases[i].text,
                          found);
        else
            ck_assert_ptr_null(found);
    }
}
END_TEST

START_TEST(start_is_refused_with_the_variable_named)
{
    static const struct {
        const char *path, *text, *name;
    } bad[] = {
        {"encryption_key", "", "ENCRYPTION_KEY:"},
        {"encryption_key", "short", "ENCRYPTION_KEY:"},
        {"encryption_key", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=", "ENCRYPTION_KEY:"},
        {"encryption_key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "ENCRYPTION_KEY:"},
        {"encryption_key", KEY ",cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=", "ENCRYPTION_KEY:"},
        {"secret_key", "", "SECRET_KEY:"},
        {"secret_key", "0123456789abcdef0123456789abcde", "SECRET_KEY: shorter than 32"},
        {"secret_key", "your-secret-key-change-this-in-production", "SECRET_KEY: this is a sample"},
        {"secret_key", "CHANGEME-CHANGEME-CHANGEME-CHANGEME", "SECRET_KEY: this is a sample"},
        {"secret_key", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "SECRET_KEY: this is a sample"},
        {"admin_token", "short", "ADMIN_TOKEN:"},
        {"admin_token", "your-admin-token-here", "ADMIN_TOKEN:"},
        {"admin.password", "admin123", "ADMIN_PASSWORD:"},
        {"admin.password", "Admin123", "ADMIN_PASSWORD:"},
        {"admin.password", "x", "ADMIN_PASSWORD:"},
        {"admin.username", "root", "ADMIN_PASSWORD:"},
        {"redis_url", "redis://localhost", "REDIS_URL:"},
        {"database_url", "postgresql+asyncpg://u@h/d",
         "DATABASE_URL: PostgreSQL is not supported yet"},
        {"database_url", "mysql://x", "DATABASE_URL:"},
        {"database_url", "sqlite://", "DATABASE_URL:"},
        {"database_url", "sqlite:///", "DATABASE_URL:"},
        {"database_url", "sqlite:///:memory:", "DATABASE_URL:"},
        {"database_url", "sqlite:///a.db?mode=ro", "DATABASE_URL:"},
        {"upstream.url", "api.openai.com", "UPSTREAM_URL:"},
        {"public_url", "ftp://x", "PUBLIC_URL:"},
        {"proxy_prefix", "proxy", "PROXY_PREFIX:"},
        {"plugin_api_encryption_key", "x", "PLUGIN_API_ENCRYPTION_KEY:"},
        {"allowed_private_hosts", "10.0.0.0/8, 10.0.0.0/99",
         "ALLOWED_PRIVATE_HOSTS: \"10.0.0.0/99\""},
        {"listen.tls_cert", "cert.pem", "TLS_KEY: not set"},
        {"listen.tls_key", "key.pem", "TLS_CERT: not set"},
        {"listen.admin_tls", "true", "ADMIN_TLS: needs TLS_CERT"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct conf *conf = good();
        ck_assert_int_eq(set(conf, bad[i].path, bad[i].text), 0);
        int err = conf_check(conf, why, sizeof(why));
        ck_assert_msg(err != 0, "%s = %s passes", bad[i].path, bad[i].text);
        ck_assert_msg(strncmp(why, bad[i].name, strlen(bad[i].name)) == 0, "%s: %s", bad[i].name,
                      why);
        bool is_secret = conf_key_find(slice_str(bad[i].path))->type == CONF_TYPE_SECRET;
        ck_assert(!is_secret || strlen(bad[i].text) < 8 || !strstr(why, bad[i].text));
        conf_free(conf);
    }
}
END_TEST

START_TEST(key_ring_comes_from_the_file_too)
{
    struct test_dir dir;
    test_dir_make(&dir);
    struct conf *conf = good();
    struct fernet *writer = NULL, *ring = NULL;
    ck_assert_int_eq(conf_make_fernet(conf, &writer, why, sizeof(why)), 0);
    struct buf token = BUF_INIT(0), back = BUF_INIT(0);
    ck_assert_int_eq(fernet_encrypt(writer, SLICE_LIT("x"), &token), 0);
    test_write_file(test_dir_file(&dir, "key"), KEY "\n");
    conf->dir = slice_str(dir.path);
    ck_assert_int_eq(set(conf, "encryption_key", ""), 0);
    ck_assert_int_eq(set(conf, "encryption_key_file", "key"), 0);
    ck_assert_int_eq(conf_check(conf, why, sizeof(why)), 0);
    ck_assert_int_eq(conf_make_fernet(conf, &ring, why, sizeof(why)), 0);
    ck_assert_int_eq(fernet_decrypt(ring, buf_slice(&token), -1, 0, &back), 0);
    ck_assert_int_eq(set(conf, "encryption_key_file", "absent"), 0);
    ck_assert_int_ne(conf_check(conf, why, sizeof(why)), 0);
    ck_assert_ptr_nonnull(strstr(why, "ENCRYPTION_KEY_FILE: cannot read"));
    buf_free(&token);
    buf_free(&back);
    fernet_free(writer);
    fernet_free(ring);
    conf_free(conf);
    test_dir_clear(dir.path);
}
END_TEST

START_TEST(database_paths_follow_their_slashes)
{
    static const struct {
        const char *url, *dir, *path;
    } cases[] = {
        {"sqlite:///data/moongate.db", "", "data/moongate.db"},
        {"sqlite:///data/moongate.db", "/etc/moongate", "/etc/moongate/data/moongate.db"},
        {"sqlite:////var/lib/x.db", "/etc/moongate", "/var/lib/x.db"},
        {"sqlite+aiosqlite:///x.db", ".", "x.db"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct conf *conf = good();
        struct slice path;
        conf->dir = slice_str(cases[i].dir);
        ck_assert_int_eq(set(conf, "database_url", cases[i].url), 0);
        ck_assert_int_eq(conf_database_path(conf, &path, why, sizeof(why)), 0);
        ck_assert_msg(slice_is(path, cases[i].path) && path.ptr[path.len] == '\0', "%s", path.ptr);
        conf_free(conf);
    }
}
END_TEST

TEST_MAIN("conf", defaults_are_those_of_the_table, values_are_read_by_their_type,
          a_near_key_is_suggested, start_is_refused_with_the_variable_named,
          key_ring_comes_from_the_file_too, database_paths_follow_their_slashes)

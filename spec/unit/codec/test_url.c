#include "codec/url.h"

#include <arpa/inet.h>
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

static struct arena *arena;

static void set_up(void)
{
    arena = arena_new(4096);
}

static void tear_down(void)
{
    arena_free(arena);
}

struct good_case {
    const char *text, *host;
    bool is_tls;
    int port;
    const char *path, *query;
};

static const struct good_case good[] = {
    {"http://a", "a", false, 80, "/", NULL},
    {"https://a", "a", true, 443, "/", NULL},
    {"HTTPS://API.Example.COM/V1", "api.example.com", true, 443, "/V1", NULL},
    {"http://a:8080", "a", false, 8080, "/", NULL},
    {"http://a:65535/", "a", false, 65535, "/", NULL},
    {"http://a?x=1", "a", false, 80, "/", "x=1"},
    {"http://a/?", "a", false, 80, "/", ""},
    {"http://a/b/../c/./d", "a", false, 80, "/b/../c/./d", NULL},
    {"http://a/%2e%2E/%00", "a", false, 80, "/%2e%2E/%00", NULL},
    {"http://a/b?c=d?e&f=/g", "a", false, 80, "/b", "c=d?e&f=/g"},
    {"http://127.0.0.1:1/", "127.0.0.1", false, 1, "/", NULL},
    {"http://8.8.8.8", "8.8.8.8", false, 80, "/", NULL},
    {"http://[::1]/", "::1", false, 80, "/", NULL},
    {"http://[0:0:0:0:0:0:0:1]:81/", "::1", false, 81, "/", NULL},
    {"https://[2001:DB8::A]/x", "2001:db8::a", true, 443, "/x", NULL},
    {"http://[::ffff:127.0.0.1]/", "::ffff:127.0.0.1", false, 80, "/", NULL},
    {"http://xn--bcher-kva.example/", "xn--bcher-kva.example", false, 80, "/", NULL},
    {"http://my_service:9000/", "my_service", false, 9000, "/", NULL},
    {"http://1a.2b/", "1a.2b", false, 80, "/", NULL},
    {"http://0xab.example/", "0xab.example", false, 80, "/", NULL},
    {"http://1.2.3.4.example/", "1.2.3.4.example", false, 80, "/", NULL},
    {"https://g.co/v1beta/models/x:streamGenerateContent?alt=sse", "g.co", true, 443,
     "/v1beta/models/x:streamGenerateContent", "alt=sse"},
};

START_TEST(test_good)
{
    const struct good_case *c = &good[_i];
    struct url url;
    const char *why;
    ck_assert_msg(url_parse(slice_str(c->text), arena, &url, &why) == 0, "%s: %s", c->text, why);
    ck_assert_msg(slice_is(url.host, c->host), "%s: %.*s", c->text, SLICE_FMT(url.host));
    ck_assert_int_eq(url.is_tls, c->is_tls);
    ck_assert_int_eq(url.port, c->port);
    ck_assert(slice_is(url.path, c->path));
    if (c->query == NULL)
        ck_assert_ptr_null(url.query.ptr);
    else
        ck_assert(url.query.ptr != NULL && slice_is(url.query, c->query));
}
END_TEST

static const char *const bad[] = {
    "",
    "http",
    "http:",
    "http:/a",
    "http://",
    "https:///x",
    "ftp://a/",
    "file:///etc/passwd",
    "gopher://a/",
    "//a/",
    "a.example/",
    " http://a/",
    "http://a /",
    "http://a/ b",
    "http://a/\t",
    "http://a/\n",
    "http://a\r\nHost: b/",
    "javascript://a",
    "http://user@a/",
    "http://user:pw@a/",
    "http://a@b@c/",
    "http://@a/",
    "http://a\\@b/",
    "http://a\\b/",
    "http://a/#f",
    "http://a#f",
    "http://a/b#",
    "http://a:/",
    "http://a:0/",
    "http://a:00080/",
    "http://a:080/",
    "http://a:65536/",
    "http://a:99999999999/",
    "http://a:-1/",
    "http://a:8x/",
    "http://a:80:80/",
    "http://a./",
    "http://.a/",
    "http://a..b/",
    "http://./",
    "http://-a/",
    "http://a-/",
    "http://a%2eb/",
    "http://a%00/",
    "http://b\xc3\xbc.example/",
    "http://\xef\xbc\x91.1.1.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0X7F.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127/",
    "http://127.0.0.01/",
    "http://127.0.0.256/",
    "http://127.0.0.1.1/",
    "http://127.0.0.1./",
    "http://1.2.3.0x4/",
    "http://a.0x/",
    "http://a.1/",
    "http://00.0.0.0/",
    "http://0/",
    "http://[::1/",
    "http://::1/",
    "http://[]/",
    "http://[:::]/",
    "http://[::1]x/",
    "http://[::1]:/",
    "http://[::1%25lo]/",
    "http://[fe80::1%eth0]/",
    "http://[127.0.0.1]/",
    "http://[v1.x]/",
    "http://[::127.0.0.01]/",
    "http://a/%",
    "http://a/%4",
    "http://a/%zz",
    "http://a/?%",
    "http://a/\"",
    "http://a/<x>",
    "http://a/{x}",
    "http://a/a\\b",
    "http://a/\x7f",
    "http://a/\x80",
    "http://a,b/",
    "http://a;b/",
    "http://a&b/",
    "http://(a)/",
    "http://*/",
};

START_TEST(test_bad)
{
    struct url url;
    const char *why = NULL;
    ck_assert_msg(url_parse(slice_str(bad[_i]), arena, &url, &why) == GW_EINVAL, "%s", bad[_i]);
    ck_assert_ptr_nonnull(why);
    ck_assert_str_ne(why, "");
}
END_TEST

START_TEST(test_sizes)
{
    struct url url;
    const char *why;
    static char text[9000];
    memcpy(text, "http://a/", 9);
    memset(text + 9, 'x', sizeof text - 9);
    ck_assert_int_eq(url_parse(slice_of(text, 8192), arena, &url, &why), 0);
    ck_assert_int_eq(url_parse(slice_of(text, 8193), arena, &url, &why), GW_ETOOBIG);
    memset(text + 7, 'x', 64);
    text[7 + 63] = '.';
    ck_assert_int_eq(url_parse(slice_of(text, 7 + 65), arena, &url, &why), 0);
    text[7 + 63] = 'x';
    ck_assert_int_eq(url_parse(slice_of(text, 7 + 64), arena, &url, &why), GW_EINVAL);
    // A NUL inside is a byte like any other, and refused.
    ck_assert_int_eq(url_parse(slice_of("http://a\0b/", 11), arena, &url, &why), GW_EINVAL);
    ck_assert_int_eq(url_parse(slice_of("http://a/\0", 10), arena, &url, &why), GW_EINVAL);
    ck_assert_int_eq(url_parse(slice_of("http://[::1\0]", 13), arena, &url, &why), GW_EINVAL);
}
END_TEST

static const struct {
    const char *base, *path, *query, *expected; // expected NULL: refused
} joins[] = {
    {"https://api.x.com", "/v1/chat/completions", "", "https://api.x.com/v1/chat/completions"},
    {"https://api.x.com/", "/v1/chat/completions", "", "https://api.x.com/v1/chat/completions"},
    {"https://api.x.com/v1", "/v1/chat/completions", "", "https://api.x.com/v1/chat/completions"},
    {"https://api.x.com/v1/", "/v1/chat/completions", "beta=true",
     "https://api.x.com/v1/chat/completions?beta=true"},
    {"https://api.x.com/openai/v1", "/v1/models", "", "https://api.x.com/openai/v1/models"},
    {"https://api.x.com/openai", "/v1/models", "", "https://api.x.com/openai/v1/models"},
    {"https://api.x.com/xv1", "/v1/models", "", "https://api.x.com/xv1/v1/models"},
    {"https://api.x.com/v1", "/v1beta/models", "", "https://api.x.com/v1/v1beta/models"},
    {"https://api.x.com/v1", "/v1", "", "https://api.x.com/v1"},
    {"https://api.x.com/v1?api-version=1", "/v1/chat", "beta=true",
     "https://api.x.com/v1/chat?api-version=1&beta=true"},
    {"https://api.x.com?api-version=1", "/v1/chat", "", "https://api.x.com/v1/chat?api-version=1"},
    {"http://[::1]:8080/", "/a", "", "http://[::1]:8080/a"},
    {"http://A.B:80", "/a", "", "http://a.b:80/a"},
    {"http://a/b/", "", "", "http://a/b/"},
    {"http://a", "b", "", NULL},
    {"http://a", "/b?c", "", NULL},
    {"http://a", "/b c", "", NULL},
    {"http://a", "/b", "c d", NULL},
    {"http://a@b", "/c", "", NULL},
};

START_TEST(test_join)
{
    struct slice out;
    int err = url_join(slice_str(joins[_i].base), slice_str(joins[_i].path),
                       slice_str(joins[_i].query), arena, &out);
    if (joins[_i].expected == NULL) {
        ck_assert_int_lt(err, 0);
    } else {
        ck_assert_int_eq(err, 0);
        ck_assert_msg(slice_is(out, joins[_i].expected), "%.*s", SLICE_FMT(out));
    }
}
END_TEST

static struct sockaddr_storage address_of(const char *text)
{
    struct sockaddr_storage out;
    memset(&out, 0, sizeof out);
    if (strchr(text, ':') != NULL) {
        out.ss_family = AF_INET6;
        ck_assert_int_eq(
            inet_pton(AF_INET6, text, &((struct sockaddr_in6 *)(void *)&out)->sin6_addr), 1);
    } else {
        out.ss_family = AF_INET;
        ck_assert_int_eq(inet_pton(AF_INET, text, &((struct sockaddr_in *)(void *)&out)->sin_addr),
                         1);
    }
    return out;
}

static const struct {
    const char *address;
    bool is_private;
} addresses[] = {
    {"0.0.0.0", true},
    {"0.1.2.3", true},
    {"1.0.0.0", false},
    {"1.1.1.1", false},
    {"9.255.255.255", false},
    {"10.0.0.0", true},
    {"10.255.255.255", true},
    {"11.0.0.0", false},
    {"100.63.255.255", false},
    {"100.64.0.0", true},
    {"100.100.100.200", true},
    {"100.127.255.255", true},
    {"100.128.0.0", false},
    {"126.255.255.255", false},
    {"127.0.0.1", true},
    {"127.255.255.255", true},
    {"128.0.0.0", false},
    {"169.253.255.255", false},
    {"169.254.169.254", true},
    {"172.15.255.255", false},
    {"172.16.0.1", true},
    {"172.31.255.255", true},
    {"172.32.0.0", false},
    {"192.0.0.192", true},
    {"192.0.2.1", true},
    {"192.88.99.1", true},
    {"192.167.255.255", false},
    {"192.168.0.1", true},
    {"192.169.0.0", false},
    {"198.17.255.255", false},
    {"198.18.0.1", true},
    {"198.19.255.255", true},
    {"198.51.100.7", true},
    {"203.0.113.7", true},
    {"8.8.8.8", false},
    {"223.255.255.255", false},
    {"224.0.0.1", true},
    {"239.255.255.255", true},
    {"240.0.0.1", true},
    {"255.255.255.255", true},
    {"::", true},
    {"::1", true},
    {"::127.0.0.1", true},
    {"::8.8.8.8", true},
    {"::ffff:127.0.0.1", true},
    {"::ffff:8.8.8.8", true},
    {"64:ff9b::8.8.8.8", true},
    {"64:ff9b::127.0.0.1", true},
    {"64:ff9b:1::1", true},
    {"100::1", true},
    {"fc00::1", true},
    {"fd00:ec2::254", true},
    {"fe80::1", true},
    {"fec0::1", true},
    {"ff02::1", true},
    {"2001::1", true},
    {"2001:0:4136:e378::1", true},
    {"2001:1ff::1", true},
    {"2001:200::1", false},
    {"2001:db8::1", true},
    {"2001:4860:4860::8888", false},
    {"2002:7f00:1::", true},
    {"2002:808:808::1", true},
    {"2606:4700:4700::1111", false},
    {"2a00:1450::1", false},
    {"3fff::1", true},
    {"3fff:1000::1", false},
    {"4000::1", true},
};

START_TEST(test_address)
{
    struct sockaddr_storage address = address_of(addresses[_i].address);
    ck_assert_msg(url_address_is_private((struct sockaddr *)&address) == addresses[_i].is_private,
                  "%s", addresses[_i].address);
}
END_TEST

START_TEST(test_address_family)
{
    struct sockaddr unknown = {.sa_family = AF_UNIX};
    ck_assert(url_address_is_private(&unknown));
}
END_TEST

START_TEST(test_ports)
{
    static const uint16_t denied[] = {0,    22,   25,   53,   110,  143,   465,  587,
                                      1433, 3306, 5432, 6379, 9200, 11211, 27017};
    static const uint16_t allowed[] = {80, 443, 8000, 8080, 8443, 11434, 3000, 65535};
    for (size_t i = 0; i < sizeof denied / sizeof *denied; i++)
        ck_assert(url_port_is_denied(denied[i]));
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        ck_assert(!url_port_is_denied(allowed[i]));
}
END_TEST

static const struct {
    const char *rule, *host;
    int port;
    const char *address;
    bool matches;
} rules[] = {
    {"ollama", "ollama", 11434, "10.0.0.5", true},
    {"Ollama", "ollama", 11434, NULL, true},
    {"ollama:11434", "ollama", 11434, "10.0.0.5", true},
    {"ollama:11434", "ollama", 80, "10.0.0.5", false},
    {"ollama", "ollama.evil.example", 80, "10.0.0.5", false},
    {"10.0.0.0/8", "x", 80, "10.1.2.3", true},
    {"10.0.0.0/8", "x", 80, "11.1.2.3", false},
    {"10.0.0.0/8", "x", 80, NULL, false},
    {"10.0.0.0/8:8080", "x", 8080, "10.1.2.3", true},
    {"10.0.0.0/8:8080", "x", 80, "10.1.2.3", false},
    {"10.0.0.0/8", "x", 80, "::ffff:10.1.2.3", true},
    {"10.0.0.0/8", "x", 80, "::ffff:11.1.2.3", false},
    {"10.1.2.3", "x", 80, "10.1.2.3", true},
    {"10.1.2.3", "x", 80, "10.1.2.4", false},
    {"172.16.0.0/12", "x", 80, "172.31.0.1", true},
    {"172.16.0.0/12", "x", 80, "172.32.0.1", false},
    {"127.0.0.0/31", "x", 80, "127.0.0.1", true},
    {"127.0.0.0/31", "x", 80, "127.0.0.2", false},
    {"0.0.0.0/0", "x", 80, "127.0.0.1", true},
    {"[fd00::]/8", "x", 80, "fd12::1", true},
    {"[fd00::]/8", "x", 80, "fe80::1", false},
    {"[fd00::]/8:81", "x", 80, "fd12::1", false},
    {"[::1]", "x", 80, "::1", true},
    {"[::1]:80", "x", 80, "::1", true},
    {"[::1]:80", "x", 80, "127.0.0.1", false},
    {"nonsense/8", "nonsense", 80, "127.0.0.1", false},
};

START_TEST(test_rule)
{
    struct sockaddr_storage address;
    if (rules[_i].address)
        address = address_of(rules[_i].address);
    ck_assert_msg(url_rule_matches(slice_str(rules[_i].rule), slice_str(rules[_i].host),
                                   (uint16_t)rules[_i].port,
                                   rules[_i].address ? (struct sockaddr *)&address : NULL) ==
                      rules[_i].matches,
                  "%s %s", rules[_i].rule, rules[_i].address);
}
END_TEST

START_TEST(test_rule_check)
{
    static const char *const valid[] = {"a",           "a.b:80",       "10.0.0.0/8",
                                        "10.0.0.1",    "10.0.0.0/8:1", "[fd00::]/8",
                                        "[::1]:65535", "0.0.0.0/0"};
    static const char *const invalid[] = {"",
                                          "*",
                                          "a/8",
                                          "10.0.0.0/33",
                                          "10.0.0.0/",
                                          "10.0.0.0/8:",
                                          "10.0.0.0/8:0",
                                          "10.0.0/8",
                                          "127.1",
                                          "fd00::/8",
                                          "[fd00::/8",
                                          "[fd00::]/129",
                                          "[fd00::]8",
                                          "a:b",
                                          "a b",
                                          "a:80x",
                                          "10.0.0.0/8/8",
                                          "http://a"};
    for (size_t i = 0; i < sizeof valid / sizeof *valid; i++)
        ck_assert_msg(url_rule_check(slice_str(valid[i])) == 0, "%s", valid[i]);
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++)
        ck_assert_msg(url_rule_check(slice_str(invalid[i])) == GW_EINVAL, "%s", invalid[i]);
}
END_TEST

START_TEST(test_coding)
{
    struct slice out;
    ck_assert_int_eq(url_decode(SLICE_LIT("a%20b+c%2F"), false, arena, &out), 0);
    ck_assert(slice_is(out, "a b+c/"));
    ck_assert_int_eq(url_decode(SLICE_LIT("a%20b+c"), true, arena, &out), 0);
    ck_assert(slice_is(out, "a b c"));
    ck_assert_int_eq(url_decode(SLICE_LIT(""), true, arena, &out), 0);
    ck_assert_uint_eq(out.len, 0);
    static const char *const broken[] = {"%", "%2", "a%2", "%zz", "%2x", "%00"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        ck_assert_int_eq(url_decode(slice_str(broken[i]), true, arena, &out), GW_EINVAL);
    ck_assert(slice_is(url_encode(SLICE_LIT("a b/\xc3\xa9-._~%"), arena), "a%20b%2F%C3%A9-._~%25"));
    // Every byte but NUL survives both ways.
    char bytes[255];
    for (int i = 0; i < 255; i++)
        bytes[i] = (char)(i + 1);
    ck_assert_int_eq(url_decode(url_encode(slice_of(bytes, 255), arena), true, arena, &out), 0);
    ck_assert(slice_eq(out, slice_of(bytes, 255)));
}
END_TEST

START_TEST(test_query)
{
    struct slice query = SLICE_LIT("a=1&&b&c=&=d&e=f=g&"), name, value;
    static const char *const expected[][2] = {
        {"a", "1"}, {"b", ""}, {"c", ""}, {"", "d"}, {"e", "f=g"}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        ck_assert(url_query_next(&query, &name, &value));
        ck_assert(slice_is(name, expected[i][0]));
        ck_assert(slice_is(value, expected[i][1]));
    }
    ck_assert(!url_query_next(&query, &name, &value));
    query = SLICE_NONE;
    ck_assert(!url_query_next(&query, &name, &value));
}
END_TEST

#define COUNT(table) (int)(sizeof table / sizeof *table)

int main(void)
{
    Suite *suite = suite_create("url");
    TCase *tcase = tcase_create("url");
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_loop_test(tcase, test_good, 0, COUNT(good));
    tcase_add_loop_test(tcase, test_bad, 0, COUNT(bad));
    tcase_add_test(tcase, test_sizes);
    tcase_add_loop_test(tcase, test_join, 0, COUNT(joins));
    tcase_add_loop_test(tcase, test_address, 0, COUNT(addresses));
    tcase_add_test(tcase, test_address_family);
    tcase_add_test(tcase, test_ports);
    tcase_add_loop_test(tcase, test_rule, 0, COUNT(rules));
    tcase_add_test(tcase, test_rule_check);
    tcase_add_test(tcase, test_coding);
    tcase_add_test(tcase, test_query);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

// Who may connect to what, and which connections may be shared.
#include "fetch_kit.h"

START_TEST(test_trust_classes)
{
    static const struct {
        enum fetch_trust trust;
        int64_t id;
        bool check;
    } kinds[] = {{FETCH_OPERATOR, 0, false}, {FETCH_OPERATOR, 0, true}, {FETCH_USER, 1, true},
                 {FETCH_USER, 2, true},      {FETCH_PLUGIN, 1, true},   {FETCH_PLUGIN, 2, true}};
    struct slice rule = SLICE_LIT("127.0.0.0/8");
    struct peer *peers[6];
    struct result result;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 6; i++) {
            struct fetch_request request = kit_get("/");
            request.trust = kinds[i].trust;
            request.trust_id = kinds[i].id;
            request.check_address = kinds[i].check;
            request.allowed_private = &rule;
            request.allowed_private_count = 1;
            kit_start(&result, &request);
            if (round == 0)
                peers[i] = kit_accept();
            kit_request(peers[i]);
            kit_say(peers[i], "HTTP/1.1 204 No\r\n\r\n");
            KIT_UNTIL(result.dones);
            ck_assert_int_eq(result.err, 0);
            ck_assert_int_eq(result.info.is_reused, round);
            kit_end(&result);
        }
    }
    // The rule is gone: the pooled connection is no way around the check.
    struct fetch_request request = kit_get("/");
    request.trust = FETCH_USER;
    request.trust_id = 1;
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_EDENIED);
    ck_assert(!result.info.sent_any);
    for (int i = 0; i < 6; i++)
        kit_close(peers[i]);
}
END_TEST

START_TEST(test_addresses)
{
    static const struct {
        const char *url, *rule;
        enum fetch_trust trust;
        int err;
    } cases[] = {
        {"http://127.0.0.1:%u/", NULL, FETCH_PLUGIN, GW_EDENIED},
        {"http://upstream.test:%u/", NULL, FETCH_USER, GW_EDENIED},
        {"http://[::1]:%u/", NULL, FETCH_USER, GW_EDENIED},
        {"http://[::ffff:127.0.0.1]:%u/", NULL, FETCH_USER, GW_EDENIED},
        {"http://metadata.test:%u/", NULL, FETCH_USER, GW_EDENIED},
        {"http://127.0.0.1:%u/", "10.0.0.0/8", FETCH_PLUGIN, GW_EDENIED},
        {"http://127.0.0.1:%u/", "127.0.0.1:1", FETCH_PLUGIN, GW_EDENIED},
        {"http://8.8.8.8:22/", NULL, FETCH_PLUGIN, GW_EDENIED},
        {"http://unknown.test:%u/", NULL, FETCH_OPERATOR, GW_EDNS},
        {"http://unknown.test:%u/", NULL, FETCH_USER, GW_EDNS},
        {"http://127.0.0.1:%u/", "127.0.0.0/8", FETCH_PLUGIN, 0},
        {"http://upstream.test:%u/", "upstream.test", FETCH_USER, 0},
        {"http://127.0.0.1:%u/", NULL, FETCH_OPERATOR, 0},
        {"http://upstream.test:%u/", NULL, FETCH_OPERATOR, 0},
    };
    char url[128];
    struct slice rule = slice_str(cases[_i].rule);
    snprintf(url, sizeof url, cases[_i].url, kit_port);
    struct fetch_request request = kit_get("/");
    request.url = slice_str(url);
    request.trust = cases[_i].trust;
    request.allowed_private = &rule;
    request.allowed_private_count = cases[_i].rule ? 1 : 0;
    struct result result;
    kit_start(&result, &request);
    if (cases[_i].err == 0) {
        struct peer *peer = kit_accept();
        kit_request(peer);
        kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, 0);
        kit_close(peer);
    } else {
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, cases[_i].err);
        ck_assert(!result.info.sent_any);
        ck_assert_str_ne(result.info.detail, "");
        ck_assert(!kit_readable(kit_listener));
    }
}
END_TEST

START_TEST(test_rebinding)
{
    // The name's second answer is private: the new look-up decides, and so does the check of the
    // connection that is in the pool from before.
    struct slice rule = SLICE_LIT("127.0.0.1/32");
    struct fetch_request request = kit_get("/");
    struct result result;
    request.trust = FETCH_USER;
    request.allowed_private = &rule;
    request.allowed_private_count = 1;
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    kit_address = "127.0.0.2";
    kit_skip_ms(61000);
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_EDENIED);
    ck_assert_int_eq(kit_lookups, 2);
    kit_close(peer);
}
END_TEST

START_TEST(test_new_address)
{
    // A name that moves: new connections go to the new address.
    struct peer *peer = kit_warm();
    kit_close(peer);
    kit_turns(5);
    kit_address = "127.0.0.2"; // nobody listens there on this port
    kit_skip_ms(61000);
    struct fetch_request request = kit_get("/");
    struct result result;
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ECONNECT);
    ck_assert_int_eq(kit_lookups, 2);
}
END_TEST

START_TEST(test_refused)
{
    struct result result;
    struct fetch_request request = kit_get("/");
    close(kit_listener);
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ECONNECT);
    ck_assert(!result.info.sent_any && !result.info.got_head);
    ck_assert_str_ne(result.info.detail, "");
    kit_listen();
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_trust_classes);
    tcase_add_loop_test(tcase, test_addresses, 0, 14);
    tcase_add_test(tcase, test_rebinding);
    tcase_add_test(tcase, test_new_address);
    tcase_add_test(tcase, test_refused);
}

int main(void)
{
    return kit_main("fetch_address", add_tests, KIT_BOTH);
}

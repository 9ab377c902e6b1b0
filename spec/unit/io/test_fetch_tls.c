// https: who is believed, and how connections end.
#include "fetch_kit.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

static EVP_PKEY *tls_key;
static X509 *tls_cert;
static char tls_ca_path[] = "/tmp/moongate-test-ca-XXXXXX";

// Self-signed, for the name upstream.test only.
static void make_certificate(void)
{
    tls_key = EVP_EC_gen("P-256");
    tls_cert = X509_new();
    X509_set_version(tls_cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(tls_cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(tls_cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(tls_cert), 3600);
    X509_NAME *name = X509_get_subject_name(tls_cert);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(tls_cert, name);
    X509_set_pubkey(tls_cert, tls_key);
    X509_EXTENSION *names =
        X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "DNS:upstream.test");
    X509_add_ext(tls_cert, names, -1);
    X509_EXTENSION_free(names);
    X509_sign(tls_cert, tls_key, EVP_sha256());
    int fd = mkstemp(tls_ca_path);
    FILE *file = fdopen(fd, "w");
    PEM_write_X509(file, tls_cert);
    fclose(file);
}

static void drop_certificate(void)
{
    unlink(tls_ca_path);
    X509_free(tls_cert);
    EVP_PKEY_free(tls_key);
}

static SSL_CTX *tls_context(int min, int max)
{
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_min_proto_version(context, min);
    SSL_CTX_set_max_proto_version(context, max);
    SSL_CTX_set_security_level(context, 0);
    ck_assert_int_eq(SSL_CTX_use_certificate(context, tls_cert), 1);
    ck_assert_int_eq(SSL_CTX_use_PrivateKey(context, tls_key), 1);
    return context;
}

static SSL *tls_accept(SSL_CTX *context, struct peer *peer)
{
    SSL *ssl = SSL_new(context);
    fcntl(peer->fd, F_SETFL, O_NONBLOCK);
    SSL_set_fd(ssl, peer->fd);
    SSL_set_accept_state(ssl);
    return ssl;
}

static bool tls_is_ready(SSL *ssl)
{
    return SSL_do_handshake(ssl) == 1;
}

static bool tls_has_request(SSL *ssl, struct peer *peer)
{
    int got = SSL_read(ssl, peer->in + peer->len, (int)(sizeof peer->in - 1 - peer->len));
    if (got > 0)
        peer->len += (size_t)got;
    peer->in[peer->len] = '\0';
    return strstr(peer->in, "\r\n\r\n") != NULL;
}

START_TEST(test_tls)
{
    static const struct {
        const char *host;
        bool has_ca;
        int max, err;
    } cases[] = {
        {"upstream.test", true, TLS1_3_VERSION, 0},
        {"upstream.test", true, TLS1_2_VERSION, 0},
        {"upstream.test", false, TLS1_3_VERSION, GW_ETLS}, // self-signed
        {"other.test", true, TLS1_3_VERSION, GW_ETLS},     // not its name
        {"127.0.0.1", true, TLS1_3_VERSION, GW_ETLS},
        {"upstream.test", true, TLS1_1_VERSION, GW_ETLS}, // too old
    };
    char url[128];
    snprintf(url, sizeof url, "https://%s:%u/x", cases[_i].host, kit_port);
    struct result result;
    struct fetch_request request = kit_get("/");
    request.url = slice_str(url);
    request.ca_file = cases[_i].has_ca ? tls_ca_path : NULL;
    SSL_CTX *context = tls_context(TLS1_VERSION, cases[_i].max);
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    SSL *ssl = tls_accept(context, peer);
    if (cases[_i].err == 0) {
        KIT_UNTIL(tls_is_ready(ssl));
        for (int round = 0; round < 3; round++) { // a late ticket or a reuse changes nothing
            if (round > 0)
                kit_start(&result, &request);
            peer->len = 0;
            KIT_UNTIL(tls_has_request(ssl, peer));
            const char *answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            SSL_write(ssl, answer, (int)strlen(answer));
            KIT_UNTIL(result.dones);
            ck_assert_msg(result.err == 0, "%s", result.info.detail);
            ck_assert_int_eq(result.info.is_reused, round > 0);
            ck_assert(kit_body_is(&result, "ok"));
            kit_end(&result);
        }
        // Without the CA file the pooled connection is not used either.
        request.ca_file = NULL;
        kit_start(&result, &request);
        struct peer *second = kit_accept();
        SSL *other = tls_accept(context, second);
        for (int i = 0; i < 8000 && !result.dones; i++) {
            tls_is_ready(other);
            kit_turn();
        }
        ck_assert_int_eq(result.err, GW_ETLS);
        SSL_free(other);
        kit_close(second);
        // A body that only the end delimits: with close_notify it is whole, without it is cut.
        request.ca_file = tls_ca_path;
        for (int is_cut = 0; is_cut < 2; is_cut++) {
            if (is_cut) {
                SSL_free(ssl);
                kit_close(peer);
            }
            kit_start(&result, &request);
            if (is_cut) {
                peer = kit_accept();
                ssl = tls_accept(context, peer);
                KIT_UNTIL(tls_is_ready(ssl));
            }
            peer->len = 0;
            KIT_UNTIL(tls_has_request(ssl, peer));
            const char *head = "HTTP/1.1 200 OK\r\n\r\nhalf";
            SSL_write(ssl, head, (int)strlen(head));
            KIT_UNTIL(result.body.len == 4);
            if (!is_cut)
                SSL_shutdown(ssl);
            shutdown(peer->fd, SHUT_WR);
            KIT_UNTIL(result.dones);
            ck_assert_int_eq(result.err, is_cut ? GW_ERESET : 0);
            kit_end(&result);
        }
    } else {
        for (int i = 0; i < 8000 && !result.dones; i++) {
            tls_is_ready(ssl);
            kit_turn();
        }
        ck_assert_int_eq(result.err, cases[_i].err);
        ck_assert(!result.info.sent_any);
        ck_assert_str_ne(result.info.detail, "");
        ck_assert_uint_eq(peer->len, 0);
    }
    SSL_free(ssl);
    SSL_CTX_free(context);
    kit_close(peer);
}
END_TEST

START_TEST(test_tls_close)
{
    // How a TLS connection ends: closed in good order while idle, or reset then, or given up by us
    // while the upstream says nothing more. The next request goes well, and the loop is quiet.
    char url[128];
    snprintf(url, sizeof url, "https://upstream.test:%u/x", kit_port);
    struct fetch_request request = kit_get("/");
    request.url = slice_str(url);
    request.ca_file = tls_ca_path;
    SSL_CTX *context = tls_context(TLS1_2_VERSION, TLS1_2_VERSION); // has no tickets that come late
    struct peer *peers[2];
    SSL *ssl[2];
    for (int round = 0; round < 2; round++) {
        struct result result;
        kit_start(&result, &request);
        peers[round] = kit_accept();
        ssl[round] = tls_accept(context, peers[round]);
        KIT_UNTIL(tls_is_ready(ssl[round]));
        KIT_UNTIL(tls_has_request(ssl[round], peers[round]));
        const char *answer =
            _i < 2 ? "HTTP/1.1 204 No\r\n\r\n" : "HTTP/1.1 204 No\r\nConnection: close\r\n\r\n";
        SSL_write(ssl[round], answer, (int)strlen(answer));
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, 0);
        ck_assert(!result.info.is_reused);
        kit_turns(3);
        ck_assert(!loop_turn(kit_loop));
        if (_i == 0)
            SSL_shutdown(ssl[round]);
        if (_i == 0)
            shutdown(peers[round]->fd, SHUT_WR);
        if (_i == 1)
            kit_reset(peers[round]);
        KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 0 || _i == 2);
        if (_i != 1)
            KIT_UNTIL(kit_readable(peers[round]->fd)); // our end, or our word of it
        if (_i == 0)
            KIT_UNTIL(kit_at_end(peers[round]));
        kit_turns(3);
        ck_assert(!loop_turn(kit_loop));
    }
    for (int round = 0; round < 2; round++) {
        SSL_free(ssl[round]);
        kit_close(peers[round]);
    }
    kit_turns(10);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    SSL_CTX_free(context);
}
END_TEST

START_TEST(test_tls_no_ca_file)
{
    struct result result;
    struct fetch_request request = kit_get("/");
    request.url = SLICE_LIT("https://upstream.test/");
    request.ca_file = "/nonexistent/ca.pem";
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ETLS);
}
END_TEST

START_TEST(test_tls_not_tls)
{
    // A plain answer to a TLS hello, and a close during the handshake.
    char url[128];
    snprintf(url, sizeof url, "https://upstream.test:%u/x", kit_port);
    for (int kind = 0; kind < 2; kind++) {
        struct result result;
        struct fetch_request request = kit_get("/");
        request.url = slice_str(url);
        kit_start(&result, &request);
        struct peer *peer = kit_accept();
        KIT_UNTIL(kit_readable(peer->fd));
        if (kind == 0)
            kit_say(peer, "HTTP/1.1 400 Bad Request\r\n\r\n");
        else
            kit_take(peer);
        kit_close(peer);
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, GW_ETLS);
        ck_assert(!result.info.sent_any);
    }
}
END_TEST

// ---- what comes and goes through a connection

struct tls_peer {
    struct peer *peer;
    SSL_CTX *context;
    SSL *ssl;
};

static struct tls_peer tls_serve(SSL_CTX *context)
{
    struct tls_peer tls = {.peer = kit_accept(), .context = context};
    tls.ssl = tls_accept(context, tls.peer);
    KIT_UNTIL(tls_is_ready(tls.ssl));
    return tls;
}

static void tls_say(struct tls_peer *tls, const char *bytes, size_t len)
{
    for (int spins = 0; len > 0 && spins < 20000; spins++) {
        int wrote = SSL_write(tls->ssl, bytes, len > 10000 ? 10000 : (int)len);
        if (wrote > 0) {
            bytes += wrote;
            len -= (size_t)wrote;
        }
        kit_turn();
    }
    ck_assert_uint_eq(len, 0);
}

static void tls_end(struct tls_peer *tls)
{
    SSL_free(tls->ssl);
    SSL_CTX_free(tls->context);
    kit_close(tls->peer);
}

static struct fetch_request tls_request(struct fetch_request request)
{
    static char url[128];
    snprintf(url, sizeof url, "https://upstream.test:%u/x", kit_port);
    request.url = slice_str(url);
    request.ca_file = tls_ca_path;
    return request;
}

START_TEST(test_tls_pause)
{
    static char body[200000];
    for (size_t i = 0; i < sizeof body; i++)
        body[i] = (char)('a' + i % 26);
    struct fetch_request request = tls_request(kit_get("/"));
    struct result result;
    kit_start(&result, &request);
    struct tls_peer tls = tls_serve(tls_context(TLS1_3_VERSION, TLS1_3_VERSION));
    KIT_UNTIL(tls_has_request(tls.ssl, tls.peer));
    result.pauses = 6;
    tls_say(&tls, "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n", 43);
    size_t sent = 0;
    for (int spins = 0; spins < 8000 && !result.dones; spins++) {
        if (sent < sizeof body) {
            size_t len = sizeof body - sent < 3000 ? sizeof body - sent : 3000;
            int wrote = SSL_write(tls.ssl, body + sent, (int)len);
            if (wrote > 0)
                sent += (size_t)wrote;
        }
        kit_turn();
        if (result.is_paused) {
            int bodies = result.bodies;
            kit_turns(3);
            ck_assert_int_eq(result.bodies, bodies);
            result.is_paused = false;
            fetch_resume(result.fetch);
        }
    }
    ck_assert_int_eq(result.dones, 1);
    ck_assert_int_eq(result.err, 0);
    ck_assert_int_eq(result.paused, 6);
    ck_assert(slice_eq(buf_slice(&result.body), slice_of(body, sizeof body)));
    kit_end(&result);
    tls_end(&tls);
}
END_TEST

START_TEST(test_tls_upload)
{
    // In pieces, large and small, and streamed: what arrives is what was given.
    static char bytes[300000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)('a' + i % 23);
    struct slice pieces[] = {slice_of(bytes, 1), slice_of(bytes + 1, 0),
                             slice_of(bytes + 1, 199999), slice_of(bytes + 200000, 100000)};
    struct tls_peer tls = {0};
    for (int round = 0; round < 3; round++) {
        size_t expected = round == 1 ? 1 : sizeof bytes;
        struct fetch_request request = tls_request(kit_post("/", round == 2 ? NULL : pieces,
                                                            round == 2 ? 0
                                                            : round    ? 2
                                                                       : 4));
        request.is_streamed = round == 2;
        request.body_length = sizeof bytes;
        struct result result;
        kit_start(&result, &request);
        if (round == 2) {
            ck_assert_int_eq(fetch_write(result.fetch, slice_of(bytes, sizeof bytes)), 0);
            fetch_write_end(result.fetch);
        }
        if (round == 0)
            tls = tls_serve(tls_context(TLS1_2_VERSION, TLS1_3_VERSION));
        tls.peer->len = 0;
        const char *body = NULL;
        for (int spins = 0; spins < 8000; spins++) {
            tls_has_request(tls.ssl, tls.peer);
            body = strstr(tls.peer->in, "\r\n\r\n");
            if (body != NULL && (size_t)(tls.peer->in + tls.peer->len - body) - 4 == expected)
                break;
            kit_turn();
        }
        ck_assert_ptr_nonnull(body);
        size_t len = (size_t)(tls.peer->in + tls.peer->len - body) - 4;
        ck_assert(slice_eq(slice_of(body + 4, len), slice_of(bytes, expected)));
        tls_say(&tls, "HTTP/1.1 204 No\r\n\r\n", 19);
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, 0);
        ck_assert_int_eq(result.info.is_reused, round > 0);
        ck_assert_uint_ge(result.info.bytes_sent, expected);
    }
    tls_end(&tls);
}
END_TEST

START_TEST(test_tls_cut)
{
    // Within a body of known length no goodbye makes the end a good one.
    struct fetch_request request = tls_request(kit_get("/"));
    struct result result;
    kit_start(&result, &request);
    struct tls_peer tls = tls_serve(tls_context(TLS1_2_VERSION, TLS1_3_VERSION));
    KIT_UNTIL(tls_has_request(tls.ssl, tls.peer));
    tls_say(&tls, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", 43);
    KIT_UNTIL(result.body.len == 4);
    if (_i == 0)
        SSL_shutdown(tls.ssl);
    if (_i == 2)
        kit_reset(tls.peer);
    else
        shutdown(tls.peer->fd, SHUT_WR);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ERESET);
    kit_end(&result);
    tls_end(&tls);
}
END_TEST

static int choose_h2(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                     const unsigned char *offered, unsigned int offered_len, void *arg)
{
    (void)ssl, (void)offered, (void)offered_len, (void)arg;
    *out = (const unsigned char *)"h2";
    *out_len = 2;
    return SSL_TLSEXT_ERR_OK;
}

START_TEST(test_tls_wrong_alpn)
{
    if (kit_over_curl)
        return; // it goes on with HTTP/1.1 all the same
    struct fetch_request request = tls_request(kit_get("/"));
    struct result result;
    SSL_CTX *context = tls_context(TLS1_2_VERSION, TLS1_3_VERSION);
    SSL_CTX_set_alpn_select_cb(context, choose_h2, NULL);
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    SSL *ssl = tls_accept(context, peer);
    for (int i = 0; i < 8000 && !result.dones; i++) {
        tls_is_ready(ssl);
        kit_turn();
    }
    ck_assert_int_eq(result.err, GW_ETLS);
    ck_assert(!result.info.sent_any);
    SSL_free(ssl);
    SSL_CTX_free(context);
    kit_close(peer);
}
END_TEST

START_TEST(test_tls_expired)
{
    X509 *expired = X509_dup(tls_cert);
    X509_gmtime_adj(X509_getm_notAfter(expired), -60);
    X509_sign(expired, tls_key, EVP_sha256());
    char path[] = "/tmp/moongate-test-expired-XXXXXX";
    FILE *file = fdopen(mkstemp(path), "w");
    PEM_write_X509(file, expired);
    fclose(file);
    struct fetch_request request = tls_request(kit_get("/"));
    request.ca_file = path;
    struct result result;
    SSL_CTX *context = tls_context(TLS1_2_VERSION, TLS1_3_VERSION);
    ck_assert_int_eq(SSL_CTX_use_certificate(context, expired), 1);
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    SSL *ssl = tls_accept(context, peer);
    for (int i = 0; i < 8000 && !result.dones; i++) {
        tls_is_ready(ssl);
        kit_turn();
    }
    ck_assert_int_eq(result.err, GW_ETLS);
    ck_assert(!result.info.sent_any);
    ck_assert_uint_eq(peer->len, 0);
    SSL_free(ssl);
    SSL_CTX_free(context);
    kit_close(peer);
    unlink(path);
    X509_free(expired);
    ck_assert(strstr(result.info.detail, "expired") != NULL);
}
END_TEST

START_TEST(test_tls_tickets_while_idle)
{
    // Tickets that come late do not cost the connection; plaintext that nobody asked for does.
    if (kit_over_curl)
        return; // it takes any byte for the end
    struct fetch_request request = tls_request(kit_get("/"));
    struct result result;
    struct tls_peer tls = {0};
    for (int round = 0; round < 3; round++) {
        kit_start(&result, &request);
        if (round == 0)
            tls = tls_serve(tls_context(TLS1_3_VERSION, TLS1_3_VERSION));
        tls.peer->len = 0;
        KIT_UNTIL(tls_has_request(tls.ssl, tls.peer));
        tls_say(&tls, "HTTP/1.1 204 No\r\n\r\n", 19);
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, 0);
        ck_assert_int_eq(result.info.is_reused, round > 0);
        ck_assert_int_eq(SSL_new_session_ticket(tls.ssl), 1);
        ck_assert_int_eq(SSL_do_handshake(tls.ssl), 1);
        kit_turns(5);
        ck_assert(!loop_turn(kit_loop));
        ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 1);
    }
    tls_say(&tls, "HTTP/1.1 200 OK\r\n\r\nevil", 23);
    KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 0);
    tls_end(&tls);
}
END_TEST

START_TEST(test_tls_goodbye_while_paused)
{
    // The goodbye came with the last bytes, and the socket says nothing more: it is remembered.
    if (kit_over_curl)
        return;
    struct fetch_request request = tls_request(kit_get("/"));
    struct result result;
    kit_start(&result, &request);
    struct tls_peer tls =
        tls_serve(tls_context(TLS1_2_VERSION, _i ? TLS1_3_VERSION : TLS1_2_VERSION));
    KIT_UNTIL(tls_has_request(tls.ssl, tls.peer));
    result.pauses = 2;
    ck_assert_int_eq(SSL_write(tls.ssl, "HTTP/1.1 200 OK\r\n\r\nall", 22), 22);
    SSL_shutdown(tls.ssl);
    for (int round = 0; round < 2; round++) {
        KIT_UNTIL(result.is_paused);
        result.is_paused = false;
        fetch_resume(result.fetch);
    }
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert(kit_body_is(&result, "all"));
    kit_end(&result);
    tls_end(&tls);
}
END_TEST

START_TEST(test_tls_goodbye_after_answer)
{
    // Behind a complete answer: it stands, and nobody is given this connection any more.
    if (kit_over_curl)
        return;
    struct fetch_request request = tls_request(kit_get("/"));
    struct result result;
    kit_start(&result, &request);
    struct tls_peer tls = tls_serve(tls_context(TLS1_3_VERSION, TLS1_3_VERSION));
    KIT_UNTIL(tls_has_request(tls.ssl, tls.peer));
    ck_assert_int_eq(SSL_write(tls.ssl, "HTTP/1.1 204 No\r\n\r\n", 19), 19);
    SSL_shutdown(tls.ssl);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    tls_end(&tls);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_loop_test(tcase, test_tls, 0, 6);
    tcase_add_loop_test(tcase, test_tls_close, 0, 3);
    tcase_add_test(tcase, test_tls_no_ca_file);
    tcase_add_test(tcase, test_tls_not_tls);
    tcase_add_test(tcase, test_tls_pause);
    tcase_add_test(tcase, test_tls_upload);
    tcase_add_loop_test(tcase, test_tls_cut, 0, 3);
    tcase_add_test(tcase, test_tls_wrong_alpn);
    tcase_add_test(tcase, test_tls_expired);
    tcase_add_test(tcase, test_tls_tickets_while_idle);
    tcase_add_loop_test(tcase, test_tls_goodbye_while_paused, 0, 2);
    tcase_add_test(tcase, test_tls_goodbye_after_answer);
}

int main(void)
{
    make_certificate();
    int status = kit_main("fetch_tls", add_tests, KIT_BOTH);
    drop_certificate();
    return status;
}

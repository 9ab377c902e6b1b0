// Requests as raw bytes against the server: each is sent whole, byte by byte and in two pieces cut
// at three places; every form must get the same statuses and leave the connection in the same
// state. The refusals are the point: smuggling, limits, chunk tricks.
#include "http1_rig.h"

struct raw_case {
    const char *name;
    const char *raw;
    const char *statuses; // "x" at the end: the server closes
};

#define H "Host: a\r\n"
#define GET "GET / HTTP/1.1\r\n" H
#define POST "POST /p HTTP/1.1\r\n" H
#define CHUNKED "Transfer-Encoding: chunked\r\n"
#define NEXT "GET /next HTTP/1.1\r\n" H "\r\n"

static const struct raw_case raw_cases[] = {
    // What must work.
    {"get", GET "\r\n", "200"},
    {"get with query", "GET /a/b?c=d&e=%20f HTTP/1.1\r\n" H "\r\n", "200"},
    {"two empty lines before", "\r\n\r\n" GET "\r\n", "200"},
    {"lower-case host name, port", "GET / HTTP/1.1\r\nhOsT: api.x.com:8080\r\n\r\n", "200"},
    {"host is IPv6", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "200"},
    {"spaces around a value", "GET / HTTP/1.1\r\nHost: \t a \t\r\n\r\n", "200"},
    {"empty value", GET "X:\r\nY: \r\n\r\n", "200"},
    {"latin-1 value", GET "X: caf\xe9\r\n\r\n", "200"},
    {"pipelined", GET "\r\n" NEXT, "200 200"},
    {"three pipelined", GET "\r\n" POST "Content-Length: 3\r\n\r\nabc" NEXT, "200 200 200"},
    {"length", POST "Content-Length: 5\r\n\r\nhello", "200"},
    {"length 0", POST "Content-Length: 0\r\n\r\n" NEXT, "200 200"},
    {"leading zeros in length", POST "Content-Length: 005\r\n\r\nhello" NEXT, "200 200"},
    {"post without body", POST "\r\n" NEXT, "200 200"},
    {"get with body", GET "Content-Length: 2\r\n\r\nhi" NEXT, "200 200"},
    {"put, delete, patch",
     "PUT / HTTP/1.1\r\n" H "\r\nDELETE / HTTP/1.1\r\n" H "\r\nPATCH / HTTP/1.1\r\n" H "\r\n",
     "200 200 200"},
    {"options star", "OPTIONS * HTTP/1.1\r\n" H "\r\n", "200"},
    {"chunked", POST CHUNKED "\r\n5\r\nhello\r\n0\r\n\r\n" NEXT, "200 200"},
    {"chunked in capitals", POST "Transfer-Encoding: CHUNKED\r\n\r\n1\r\nx\r\n0\r\n\r\n", "200"},
    {"chunk sizes in hex", POST CHUNKED "\r\nA\r\n0123456789\r\nb\r\n0123456789a\r\n0\r\n\r\n",
     "200"},
    {"zeros before a chunk size", POST CHUNKED "\r\n0005\r\nhello\r\n000\r\n\r\n" NEXT, "200 200"},
    {"chunk extensions", POST CHUNKED "\r\n5;a=b;c=\"d e\"\r\nhello\r\n0;z\r\n\r\n" NEXT,
     "200 200"},
    {"trailers", POST CHUNKED "\r\n1\r\nx\r\n0\r\nX-T: 1\r\nHost: evil\r\n\r\n" NEXT, "200 200"},
    {"empty chunked", POST CHUNKED "\r\n0\r\n\r\n" NEXT, "200 200"},
    {"connection close", GET "Connection: close\r\n\r\n", "200x"},
    {"connection close drops the rest", GET "Connection: close\r\n\r\n" NEXT, "200x"},
    {"close among tokens", GET "Connection: x, Close\r\n\r\n", "200x"},
    {"1.0", "GET / HTTP/1.0\r\n\r\n", "200x"},
    {"1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" NEXT, "200 200"},
    {"1.0 post", "POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", "200x"},
    {"websocket", GET "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" NEXT, "200 200"},
    {"upgrade to h2c is ignored",
     GET "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n" NEXT,
     "200 200"},
    {"upgrade with a body",
     POST "Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nhi" NEXT, "200 200"},
    {"expect without a body", GET "Expect: 100-continue\r\n\r\n" NEXT, "200 200"},
    {"expect in 1.0", "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
     "200x"},
    {"bearer and x-api-key", GET "Authorization: Bearer a\r\nX-Api-Key: b\r\n\r\n", "200"},
    {"underscore twin is dropped",
     GET "Content_Length: 5\r\nTransfer_Encoding: chunked\r\n\r\n" NEXT, "200 200"},
    {"unknown connection token", GET "Connection: foo\r\n\r\n" NEXT, "200 200"},

    // Request line.
    {"0.9", "GET /\r\n\r\n", "505x"},
    {"0.9 with a header", "GET /\r\nHost: a\r\n\r\n", "505x"},
    {"2.0", "GET / HTTP/2.0\r\n" H "\r\n", "505x"},
    {"1.2", "GET / HTTP/1.2\r\n" H "\r\n", "505x"},
    {"3.0", "GET / HTTP/3.0\r\n" H "\r\n", "505x"},
    {"1.10", "GET / HTTP/1.10\r\n" H "\r\n", "400x"},
    {"version 01.1", "GET / HTTP/01.1\r\n" H "\r\n", "400x"},
    {"lower-case protocol", "GET / http/1.1\r\n" H "\r\n", "400x"},
    {"h2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505x"},
    {"trace", "TRACE / HTTP/1.1\r\n" H "\r\n", "501x"},
    {"connect", "CONNECT a:443 HTTP/1.1\r\n" H "\r\n", "501x"},
    {"known but unwanted method", "PROPFIND / HTTP/1.1\r\n" H "\r\n", "501x"},
    {"unknown method", "FOO / HTTP/1.1\r\n" H "\r\n", "501x"},
    {"method with a tail", "GETX / HTTP/1.1\r\n" H "\r\n", "501x"},
    {"lower-case method", "get / HTTP/1.1\r\n" H "\r\n", "400x"},
    {"rtsp", "GET / RTSP/1.0\r\n" H "\r\n", "400x"},
    {"rtsp method", "DESCRIBE / RTSP/1.0\r\n" H "\r\n", "501x"},
    {"ice", "SOURCE / ICE/1.0\r\n" H "\r\n", "501x"},
    {"tls", "\x16\x03\x01\x02", "400x"},
    {"two spaces before the target", "GET  / HTTP/1.1\r\n" H "\r\n", "400x"},
    {"two spaces after the target", "GET /  HTTP/1.1\r\n" H "\r\n", "400x"},
    {"tab in the request line", "GET\t/ HTTP/1.1\r\n" H "\r\n", "501x"},
    {"space after the version", "GET / HTTP/1.1 \r\n" H "\r\n", "400x"},
    {"space before the method", " GET / HTTP/1.1\r\n" H "\r\n", "400x"},
    {"no target", "GET HTTP/1.1\r\n" H "\r\n", "400x"},
    {"space in the target", "GET /a b HTTP/1.1\r\n" H "\r\n", "400x"},
    {"fragment", "GET /a#b HTTP/1.1\r\n" H "\r\n", "400x"},
    {"tab in the target", "GET /a\tb HTTP/1.1\r\n" H "\r\n", "400x"},
    {"control byte in the target", "GET /a\x01 HTTP/1.1\r\n" H "\r\n", "400x"},
    {"delete byte in the target", "GET /a\x7f HTTP/1.1\r\n" H "\r\n", "400x"},
    {"non-ASCII target", "GET /caf\xc3\xa9 HTTP/1.1\r\n" H "\r\n", "400x"},
    {"absolute form", "GET http://a/ HTTP/1.1\r\n" H "\r\n", "400x"},
    {"absolute form of another host", "GET http://b/ HTTP/1.1\r\n" H "\r\n", "400x"},
    {"star without options", "GET * HTTP/1.1\r\n" H "\r\n", "400x"},
    {"target without slash", "GET a HTTP/1.1\r\n" H "\r\n", "400x"},
    {"bare LF", "GET / HTTP/1.1\nHost: a\n\n", "400x"},
    {"bare CR", "GET / HTTP/1.1\rHost: a\r\r", "400x"},
    {"LF before the request", "\n" GET "\r\n", "400x"},
    {"CR before the request", "\r" GET "\r\n", "400x"},
    {"three empty lines before", "\r\n\r\n\r\n" GET "\r\n", "400x"},

    // Headers.
    {"no host", "GET / HTTP/1.1\r\n\r\n", "400x"},
    {"two hosts", GET "Host: a\r\n\r\n", "400x"},
    {"two hosts in 1.0", "GET / HTTP/1.0\r\n" H "Host: b\r\n\r\n", "400x"},
    {"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "400x"},
    {"blank host", "GET / HTTP/1.1\r\nHost:  \r\n\r\n", "400x"},
    {"host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "400x"},
    {"host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400x"},
    {"host with user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "400x"},
    {"host with a bad port", "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", "400x"},
    {"host with an empty port", "GET / HTTP/1.1\r\nHost: a:\r\n\r\n", "400x"},
    {"host with port 65536", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", "400x"},
    {"host is a port", "GET / HTTP/1.1\r\nHost: :80\r\n\r\n", "400x"},
    {"host in open brackets", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "400x"},
    {"junk host in 1.0", "GET / HTTP/1.0\r\nHost: a b\r\n\r\n", "400x"},
    {"space before the colon", GET "X : y\r\n\r\n", "400x"},
    {"space before a name", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", "400x"},
    {"folded header", GET "X: a\r\n b\r\n\r\n", "400x"},
    {"folded with a tab", GET "X: a\r\n\tb\r\n\r\n", "400x"},
    {"no colon", GET "X\r\n\r\n", "400x"},
    {"empty name", GET ": x\r\n\r\n", "400x"},
    {"control byte in a value",
     GET "X: a\x01"
         "b\r\n\r\n",
     "400x"},
    {"bare LF in headers", GET "X: a\nY: b\r\n\r\n", "400x"},
    {"bare CR in a value", GET "X: a\rb\r\n\r\n", "400x"},
    {"bare LF at the end", GET "X: a\r\n\n", "400x"},
    {"non-ASCII name", GET "caf\xe9: x\r\n\r\n", "400x"},
    {"two authorizations", GET "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
     "400x"},
    {"two x-api-keys", GET "x-api-key: a\r\nX-API-Key: a\r\n\r\n", "400x"},
    {"two api-keys", GET "api-key: a\r\napi-key: b\r\n\r\n", "400x"},
    {"other expectation", POST "Expect: teapot\r\nContent-Length: 2\r\n\r\nhi", "417x"},

    // Length against coding.
    {"two lengths", POST "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "400x"},
    {"two equal lengths", POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "400x"},
    {"length list", POST "Content-Length: 5, 5\r\n\r\nhello", "400x"},
    {"signed length", POST "Content-Length: +5\r\n\r\nhello", "400x"},
    {"negative length", POST "Content-Length: -5\r\n\r\nhello", "400x"},
    {"hex length", POST "Content-Length: 0x5\r\n\r\nhello", "400x"},
    {"empty length", POST "Content-Length:\r\n\r\nhello", "400x"},
    {"length with a space", POST "Content-Length: 5 5\r\n\r\nhello", "400x"},
    {"length over 64 bits", POST "Content-Length: 18446744073709551621\r\n\r\nhello", "400x"},
    {"length over the limit", POST "Content-Length: 33554433\r\n\r\n", "413x"},
    {"huge length", POST "Content-Length: 18446744073709551615\r\n\r\n", "413x"},
    {"length then coding", POST "Content-Length: 5\r\n" CHUNKED "\r\n0\r\n\r\n", "400x"},
    {"coding then length", POST CHUNKED "Content-Length: 5\r\n\r\n0\r\n\r\n", "400x"},
    {"coding in 1.0", "POST / HTTP/1.0\r\n" H CHUNKED "\r\n0\r\n\r\n", "400x"},
    {"coding in 1.0, keep-alive",
     "POST / HTTP/1.0\r\n" H "Connection: keep-alive\r\n" CHUNKED "\r\n0\r\n\r\n", "400x"},
    {"two codings", POST CHUNKED CHUNKED "\r\n0\r\n\r\n", "400x"},
    {"gzip, chunked", POST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400x"},
    {"chunked, identity", POST "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "400x"},
    {"identity", POST "Transfer-Encoding: identity\r\n\r\n", "400x"},
    {"xchunked", POST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "400x"},
    {"quoted chunked", POST "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "400x"},
    {"chunked with a parameter", POST "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", "400x"},
    {"vertical tab before chunked",
     POST "Transfer-Encoding: \x0b"
          "chunked\r\n\r\n0\r\n\r\n",
     "400x"},
    {"space before the coding's colon", POST "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
     "400x"},
    {"empty coding", POST "Transfer-Encoding:\r\n\r\n0\r\n\r\n", "400x"},

    // Chunks. The head was good, so the handler has the request.
    {"chunk size with a sign", POST CHUNKED "\r\n+5\r\nhello\r\n0\r\n\r\n", "400x"},
    {"chunk size 0x5", POST CHUNKED "\r\n0x5\r\nhello\r\n0\r\n\r\n", "400x"},
    {"chunk size with a space", POST CHUNKED "\r\n5 \r\nhello\r\n0\r\n\r\n", "400x"},
    {"space before a chunk size", POST CHUNKED "\r\n 5\r\nhello\r\n0\r\n\r\n", "400x"},
    {"empty chunk size", POST CHUNKED "\r\n\r\nhello\r\n0\r\n\r\n", "400x"},
    {"chunk size over 64 bits", POST CHUNKED "\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", "400x"},
    {"chunk over the limit", POST CHUNKED "\r\n2000001\r\nhello", "413x"},
    {"chunk size of 16 digits", POST CHUNKED "\r\nffffffffffffffff\r\nhello", "413x"},
    {"bare LF after a chunk size", POST CHUNKED "\r\n5\nhello\r\n0\r\n\r\n", "400x"},
    {"bare CR after a chunk size", POST CHUNKED "\r\n5\rhello\r\n0\r\n\r\n", "400x"},
    {"bare LF after a chunk", POST CHUNKED "\r\n5\r\nhello\n0\r\n\r\n", "400x"},
    {"chunk longer than said", POST CHUNKED "\r\n5\r\nhelloX\r\n0\r\n\r\n", "400x"},
    {"chunk without its line end", POST CHUNKED "\r\n5\r\nhello0\r\n\r\n", "400x"},
    {"bare LF in a chunk extension", POST CHUNKED "\r\n5;a\nX\r\nhello\r\n0\r\n\r\n", "400x"},
    {"empty chunk extension", POST CHUNKED "\r\n5;\r\nhello\r\n0\r\n\r\n", "400x"},
    {"bare LF after the last chunk", POST CHUNKED "\r\n0\n\n", "400x"},
    {"bad trailer", POST CHUNKED "\r\n0\r\nX y\r\n\r\n", "400x"},
};

#define RAW_COUNT (sizeof raw_cases / sizeof raw_cases[0])

static int mismatch_count;

static void expect(struct rig *rig, const char *name, struct slice raw, size_t first, size_t step,
                   const char *expected)
{
    int fd = rig_connect(rig);
    struct buf got = BUF_INIT(0);
    rig_reset(rig);
    for (size_t at = 0; at < raw.len;) {
        size_t len = at == 0 ? first : step;
        if (len > raw.len - at)
            len = raw.len - at;
        (void)!rig_send(rig, fd, slice_of(raw.ptr + at, len)); // refusals may come in between
        at += len;
    }
    bool is_closed = rig_recv(rig, fd, &got);
    char seen[256];
    rig_statuses(buf_slice(&got), false, seen, sizeof seen - 1, NULL);
    if (is_closed)
        strcat(seen, "x");
    if (strcmp(seen, expected) != 0) { // all are reported, not only the first
        printf("%s (first %zu, then %zu): %s, not %s\n", name, first, step, seen, expected);
        mismatch_count++;
    }
    for (int i = 0; i < rig->stream_count; i++)
        ck_assert_msg(rig->streams[i].closes == 1, "%s: stream %d not closed", name, i);
    close(fd);
    rig_turn(rig);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    buf_free(&got);
}

static void expect_any_split(struct rig *rig, const char *name, struct slice raw,
                             const char *expected)
{
    expect(rig, name, raw, raw.len, raw.len, expected);
    expect(rig, name, raw, raw.len / 4 + 1, raw.len, expected);
    expect(rig, name, raw, raw.len / 2 + 1, raw.len, expected);
    expect(rig, name, raw, raw.len * 3 / 4 + 1, raw.len, expected);
    if (raw.len < 2000)
        expect(rig, name, raw, 1, 1, expected);
    else
        expect(rig, name, raw, 777, 1031, expected);
}

START_TEST(raw_requests)
{
    struct rig *rig = rig_new(RIG_ECHO);
    for (size_t i = 0; i < RAW_COUNT; i++)
        expect_any_split(rig, raw_cases[i].name, slice_str(raw_cases[i].raw),
                         raw_cases[i].statuses);
    ck_assert_int_eq(mismatch_count, 0);
    rig_free(rig);
}
END_TEST

START_TEST(nul_bytes)
{
    struct rig *rig = rig_new(RIG_ECHO);
    expect_any_split(rig, "NUL in a value", SLICE_LIT(GET "X: a\0b\r\n\r\n"), "400x");
    expect_any_split(rig, "NUL in a name", SLICE_LIT(GET "X\0: a\r\n\r\n"), "400x");
    expect_any_split(rig, "NUL in the target", SLICE_LIT("GET /\0 HTTP/1.1\r\n" H "\r\n"), "400x");
    expect_any_split(rig, "NUL in a chunk size",
                     SLICE_LIT(POST CHUNKED "\r\n5\0\r\nhello\r\n0\r\n\r\n"), "400x");
    expect_any_split(rig, "NUL in a body", SLICE_LIT(POST "Content-Length: 3\r\n\r\na\0b" NEXT),
                     "200 200");
    ck_assert_int_eq(mismatch_count, 0);
    rig_free(rig);
}
END_TEST

static void repeat(struct buf *buf, const char *text, size_t times)
{
    for (size_t i = 0; i < times; i++)
        ck_assert_int_eq(buf_append_str(buf, text), 0);
}

static void expect_buf(struct rig *rig, const char *name, struct buf *raw, const char *expected)
{
    expect_any_split(rig, name, buf_slice(raw), expected);
    buf_clear(raw);
}

START_TEST(limits)
{
    struct rig *rig = rig_new(RIG_ECHO);
    struct buf raw = BUF_INIT(0);

    repeat(&raw, "GET /", 1);
    repeat(&raw, "a", 8191);
    repeat(&raw, " HTTP/1.1\r\n" H "\r\n", 1);
    expect_buf(rig, "target of 8 KiB", &raw, "200");

    repeat(&raw, "GET /", 1);
    repeat(&raw, "a", 8192);
    repeat(&raw, " HTTP/1.1\r\n" H "\r\n", 1);
    expect_buf(rig, "target of 8 KiB and 1", &raw, "414x");

    repeat(&raw, GET, 1);
    repeat(&raw, "X: y\r\n", 99);
    repeat(&raw, "\r\n", 1);
    expect_buf(rig, "100 fields", &raw, "200");

    repeat(&raw, GET, 1);
    repeat(&raw, "X: y\r\n", 100);
    repeat(&raw, "\r\n", 1);
    expect_buf(rig, "101 fields", &raw, "431x");

    repeat(&raw, GET, 1);
    repeat(&raw, "X_Y: y\r\n", 100);
    repeat(&raw, "\r\n", 1);
    expect_buf(rig, "101 fields, dropped ones too", &raw, "431x");

    repeat(&raw, GET "X: ", 1);
    repeat(&raw, "a", 32000);
    repeat(&raw, "\r\n\r\n", 1);
    expect_buf(rig, "31 KiB of headers", &raw, "200");

    repeat(&raw, GET "X: ", 1);
    repeat(&raw, "a", 33000);
    repeat(&raw, "\r\n\r\n", 1);
    expect_buf(rig, "33 KiB of headers", &raw, "431x");

    repeat(&raw, GET, 1);
    repeat(&raw, "a", 33000);
    repeat(&raw, ": x\r\n\r\n", 1);
    expect_buf(rig, "a header name of 33 KiB", &raw, "431x");

    repeat(&raw, GET "X:", 1);
    repeat(&raw, " ", 33000);
    repeat(&raw, "a\r\n\r\n", 1);
    expect_buf(rig, "33 KiB of spaces", &raw, "431x");

    repeat(&raw, POST CHUNKED "\r\n5;", 1);
    repeat(&raw, "e", 250);
    repeat(&raw, "\r\nhello\r\n0\r\n\r\n", 1);
    expect_buf(rig, "chunk extension of 250 bytes", &raw, "200");

    repeat(&raw, POST CHUNKED "\r\n5;", 1);
    repeat(&raw, "e", 300);
    repeat(&raw, "\r\nhello\r\n0\r\n\r\n", 1);
    expect_buf(rig, "chunk extension of 300 bytes", &raw, "400x");

    repeat(&raw, POST CHUNKED "\r\n5", 1);
    repeat(&raw, ";a=b", 100);
    repeat(&raw, "\r\nhello\r\n0\r\n\r\n", 1);
    expect_buf(rig, "100 small chunk extensions", &raw, "400x");

    repeat(&raw, POST CHUNKED "\r\n", 1);
    for (int i = 0; i < 80; i++) {
        repeat(&raw, "1;", 1);
        repeat(&raw, "e", 240);
        repeat(&raw, "\r\nx\r\n", 1);
    }
    repeat(&raw, "0\r\n\r\n", 1);
    expect_buf(rig, "19 KiB of chunk extensions", &raw, "400x");

    repeat(&raw, POST CHUNKED "\r\n0\r\n", 1);
    repeat(&raw, "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", 1000);
    repeat(&raw, "\r\n", 1);
    expect_buf(rig, "43 KiB of trailers", &raw, "431x");

    repeat(&raw, POST CHUNKED "\r\n", 1);
    repeat(&raw, "0", 90000);
    repeat(&raw, "1\r\nx\r\n0\r\n\r\n", 1);
    expect_buf(rig, "90 KB of zeros before a chunk size", &raw, "400x");

    repeat(&raw, POST CHUNKED "\r\n", 1);
    repeat(&raw, "1\r\nx\r\n", 20000);
    repeat(&raw, "0\r\n\r\n" NEXT, 1);
    expect_buf(rig, "20,000 chunks of one byte", &raw, "200 200");

    ck_assert_int_eq(mismatch_count, 0);
    buf_free(&raw);
    rig_free(rig);
}
END_TEST

START_TEST(head_as_the_handler_sees_it)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int fd = rig_connect(rig);
    rig_send_text(
        rig, fd,
        "GET /a?b=c HTTP/1.1\r\nHOST: x\r\nX-Long-Name:  some value \t\r\nA_B: dropped\r\n"
        "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n");
    ck_assert_str_eq(rig->last_target, "/a?b=c");
    ck_assert_str_eq(rig->last_headers, "host=x;x-long-name=some value;"
                                        "connection=keep-alive, Upgrade;upgrade=WebSocket;");
    ck_assert(rig->last_is_websocket);
    rig->mode = RIG_MANUAL;
    rig_send_text(rig, fd, POST CHUNKED "\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nEvil: 1\r\n\r\n");
    struct http1_stream *stream = rig->streams[1].stream;
    const struct http1_request *request = http1_request(stream);
    ck_assert(slice_eq(buf_slice(&rig->body), SLICE_LIT("abcde")));
    ck_assert_int_eq((int)request->content_length, -1);
    ck_assert_uint_eq(request->header_count, 2);
    ck_assert_ptr_null(http1_header(request, "evil").ptr);
    ck_assert(slice_is(http1_header(request, "host"), "a"));
    ck_assert_uint_eq(http1_header_count(request, "host"), 1);
    ck_assert(slice_is(request->path, "/p"));
    ck_assert_ptr_null(request->query.ptr);
    ck_assert_uint_eq(http1_bytes_received(stream), 5);
    ck_assert_uint_eq(request->listener_tag, 3);
    ck_assert(!rig->last_is_websocket);
    close(fd);
    rig_free(rig);
}
END_TEST

START_TEST(refusal_names_the_path)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int fd = rig_connect(rig);
    struct buf got = BUF_INIT(0), bodies = BUF_INIT(0);
    char seen[64];
    rig_send_text(rig, fd, "POST /v1/x?q HTTP/1.1\r\n" H "Content-Length: 99999999\r\n\r\n");
    ck_assert(rig_recv(rig, fd, &got));
    rig_statuses(buf_slice(&got), false, seen, sizeof seen, &bodies);
    ck_assert_str_eq(seen, "413");
    ck_assert(slice_is(buf_slice(&bodies), "refused 413 request body too large /v1/x|"));
    ck_assert_int_ge((int)slice_find(buf_slice(&got), SLICE_LIT("connection: close\r\n")), 0);
    ck_assert_int_eq(rig->stream_count, 0);
    close(fd);
    buf_free(&got);
    buf_free(&bodies);
    rig_free(rig);
}
END_TEST

static TCase *make_case(const char *name)
{
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, raw_requests);
    tcase_add_test(tcase, nul_bytes);
    tcase_add_test(tcase, limits);
    tcase_add_test(tcase, head_as_the_handler_sees_it);
    tcase_add_test(tcase, refusal_names_the_path);
    return tcase;
}

int main(void)
{
    Suite *suite = suite_create("http1");
    TCase *tls = make_case("requests over TLS");
    tcase_add_unchecked_fixture(tls, rig_use_tls, rig_use_plain);
    suite_add_tcase(suite, make_case("requests"));
    suite_add_tcase(suite, tls);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}

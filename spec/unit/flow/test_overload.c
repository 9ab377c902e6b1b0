// Overload: the rules with driven numbers, then what the flow does with them: refusals that cost
// nothing, running streams that are left alone, budgets that are given back.
#include "flow_rig.h"

#include "base/pressure.h"
#include "flow/exchange.h"

#include <sys/resource.h>

#define MS UINT64_C(1000000)
#define US UINT64_C(1000)

// ---- the rule

START_TEST(a_burst_is_no_overload)
{
    struct overload it;
    uint64_t now = 1000 * MS;
    overload_init(&it, 100);
    // One turn of two seconds, then the queue is empty.
    ck_assert_int_eq(overload_turn(&it, now, 2000 * MS, 0), OVERLOAD_SAME);
    ck_assert_int_eq(overload_turn(&it, now += MS, MS, 500 * US), OVERLOAD_SAME);
    // Turns that are long, but with a pause now and then.
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(overload_turn(&it, now += 150 * MS, 150 * MS, i % 2 ? MS : 0),
                         OVERLOAD_SAME);
        ck_assert(overload_admit(&it, now));
    }
    // A stall of a second and the queue it leaves, at a quarter of the capacity.
    for (uint64_t turn = 1000 * MS; turn > MS; turn /= 4)
        ck_assert_int_eq(overload_turn(&it, now += turn, turn, 0), OVERLOAD_SAME);
    // Turns without a pause, but short ones.
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(overload_turn(&it, now += 99 * MS, 99 * MS, 0), OVERLOAD_SAME);
    ck_assert(!it.is_shedding);
}
END_TEST

START_TEST(a_standing_queue_is)
{
    struct overload it;
    uint64_t now = 1000 * MS;
    overload_init(&it, 20);
    enum overload_change change = OVERLOAD_SAME;
    int turns = 0;
    while (change == OVERLOAD_SAME && turns++ < 100)
        change = overload_turn(&it, now += 25 * MS, 25 * MS, 0);
    ck_assert_int_eq(change, OVERLOAD_BEGINS);
    ck_assert_int_eq(turns, 5); // 100 ms after the first
    // The first two of a turn whatever the time; more while it is young; then none.
    ck_assert(overload_admit(&it, now));
    ck_assert(overload_admit(&it, now + 5 * MS));
    ck_assert(!overload_admit(&it, now + 5 * MS));
    ck_assert(!overload_admit(&it, now + 2 * MS));
    ck_assert(overload_admit(&it, now + MS));
    ck_assert_uint_eq(it.refused, 2);
    // It goes on while there is something to refuse.
    for (int i = 0; i < 50; i++) {
        ck_assert_int_eq(overload_turn(&it, now += 5 * MS, 5 * MS, 0), OVERLOAD_SAME);
        for (int k = 0; k < 2; k++)
            ck_assert(overload_admit(&it, now));
        ck_assert(!overload_admit(&it, now + 3 * MS));
    }
    // …and ends 100 ms after the last refusal.
    uint64_t last = now;
    do {
        change = overload_turn(&it, now += 5 * MS, 5 * MS, 0);
        ck_assert(overload_admit(&it, now));
    } while (change == OVERLOAD_SAME);
    ck_assert_int_eq(change, OVERLOAD_ENDS);
    ck_assert_uint_eq(now - last, 105 * MS);
    ck_assert(!it.is_shedding);
    ck_assert(overload_admit(&it, now + 50 * MS));
}
END_TEST

// Small bursts after an overload: a part of each would be refused for ever, at a tenth of the load.
START_TEST(bursts_do_not_keep_it_up)
{
    struct overload it;
    uint64_t now = 1000 * MS, waited = 0, busy = 100 * MS;
    overload_init(&it, 100);
    while (!it.is_shedding)
        (void)overload_turn(&it, now += 100 * MS, 100 * MS, 0);
    for (int burst = 0; burst < 100 && it.is_shedding; burst++) {
        uint64_t start = now;
        (void)overload_turn(&it, now, busy, waited);
        for (int i = 0; i < 80; i++)
            now += overload_admit(&it, now) ? 100 * US : 8 * US;
        busy = now - start;
        waited = 90 * MS - busy;
        now = start + 90 * MS;
    }
    ck_assert(!it.is_shedding);
}
END_TEST

// When there are so many that only refusing them fills the turns, serving keeps a share.
START_TEST(refusing_is_not_all_it_does)
{
    struct overload it;
    uint64_t now = 1000 * MS;
    overload_init(&it, 100);
    while (!it.is_shedding)
        (void)overload_turn(&it, now += 100 * MS, 100 * MS, 0);
    for (uint64_t refused = 100; refused <= 100000; refused *= 10) {
        for (uint64_t i = 0; i < refused; i++)
            ck_assert(!overload_admit(&it, now + 60 * MS) || i < 2);
        // A turn that lasts long does not end it, though its last refusal is long ago.
        ck_assert_int_eq(overload_turn(&it, now += 2000 * MS, 2000 * MS, 0), OVERLOAD_SAME);
        uint64_t slice = refused * 8 * US;
        slice = slice < 2 * MS ? 2 * MS : slice > 50 * MS ? 50 * MS : slice;
        ck_assert(overload_admit(&it, now) && overload_admit(&it, now)); // two anyway
        ck_assert(overload_admit(&it, now + slice - 100 * US));
        ck_assert(!overload_admit(&it, now + slice + 100 * US));
    }
}
END_TEST

START_TEST(zero_switches_it_off)
{
    struct overload it;
    overload_init(&it, 0);
    for (uint64_t now = MS; now < 10000 * MS; now += 500 * MS)
        ck_assert_int_eq(overload_turn(&it, now, 500 * MS, 0), OVERLOAD_SAME);
    ck_assert(overload_admit(&it, 0));
}
END_TEST

struct load {
    uint64_t service_ns, refusal_ns, between_ns; // between two arrivals
    uint64_t served, refused, longest_refusal_ns;
};

// An open-loop load against one worker: each turn takes up what had come when it began, answers go
// out at its end. The first 3 s are not counted.
static void simulate(struct load *load, uint64_t seconds)
{
    struct overload it;
    uint64_t now = 1000 * MS, next = now, end = now + seconds * 1000 * MS,
             count_from = now + 3000 * MS;
    uint64_t busy = 0, waited = 0;
    overload_init(&it, 100);
    load->served = load->refused = load->longest_refusal_ns = 0;
    while (now < end) {
        uint64_t start = now, oldest_refused = 0;
        (void)overload_turn(&it, now, busy, waited);
        for (; next <= start; next += load->between_ns) {
            bool is_in = overload_admit(&it, now);
            now += is_in ? load->service_ns : load->refusal_ns;
            if (start < count_from)
                continue;
            load->served += is_in;
            load->refused += !is_in;
            if (!is_in && !oldest_refused)
                oldest_refused = next;
        }
        if (oldest_refused && now - oldest_refused > load->longest_refusal_ns)
            load->longest_refusal_ns = now - oldest_refused;
        busy = now - start;
        waited = next > now ? next - now : 0;
        if (next > now)
            now = next;
    }
}

START_TEST(goodput_and_fast_refusals)
{
    // A plain call of 50 µs; a plugin that computes for 5 ms; at 1.5 and 3 times the capacity.
    for (uint64_t tenths = 15; tenths <= 30; tenths += 15) {
        for (int is_heavy = 0; is_heavy < 2; is_heavy++) {
            struct load load = {.service_ns = is_heavy ? 5 * MS : 50 * US, .refusal_ns = 8 * US};
            load.between_ns = load.service_ns * 10 / tenths;
            simulate(&load, 13);
            double peak = 10e9 / (double)load.service_ns;
            // What refusing all the rest leaves for serving.
            double cost = (double)load.refusal_ns / (double)load.service_ns;
            double most = (1 - (double)tenths / 10 * cost) / (1 - cost);
            ck_assert_msg((double)load.served >= peak * (tenths == 15 ? 0.9 : most * 0.95),
                          "%.1f x: %.0f %% of the peak", (double)tenths / 10,
                          (double)load.served * 100 / peak);
            ck_assert_uint_gt(load.refused, 0);
            ck_assert_msg(load.longest_refusal_ns < (is_heavy ? 25 : 10) * MS,
                          "a refusal took %llu us",
                          (unsigned long long)(load.longest_refusal_ns / US));
        }
    }
    // Below the capacity nobody is refused.
    struct load load = {.service_ns = 50 * US, .refusal_ns = 8 * US, .between_ns = 56 * US};
    simulate(&load, 13);
    ck_assert_uint_eq(load.refused, 0);
}
END_TEST

START_TEST(descriptors_are_shared_out)
{
    static const struct {
        struct overload_descriptors have;
        uint64_t least, most;
    } rows[] = {
        {{.limit = 1 << 20, .used = 60, .workers = 8, .wanted = 60000, .for_operators = 64},
         60000,
         60000},
        // 9,500 open streams fit into the limit of a machine with 20,000.
        {{.limit = 20000, .used = 60, .workers = 2, .wanted = 60000, .for_operators = 64},
         9500,
         10000},
        {{.limit = 64, .used = 33, .workers = 1, .wanted = 60000, .for_operators = 4}, 4, 8},
        {{.limit = 64, .used = 62, .workers = 4, .wanted = 60000, .for_operators = 4}, 1, 1},
        {{.limit = 4096, .used = 40, .workers = 1, .wanted = 10, .for_operators = 4}, 10, 10},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t share = overload_client_share(&rows[i].have);
        ck_assert_uint_ge(share, rows[i].least);
        ck_assert_uint_le(share, rows[i].most);
    }
}
END_TEST

// ---- the flow

// As if its worker were busy for long: no turn of the test changes that.
static void shed(void)
{
    loop_watch(rig.loop, NULL, NULL);
    rig.flow->overload.is_shedding = true;
    rig.flow->overload.admitted = 1000;
    rig.flow->overload.turn_ns = 0;
}

static bool metric_has(const char *line)
{
    struct buf out = BUF_INIT(0);
    ck_assert_int_eq(process_metrics(rig.flow, &out), 0);
    bool has = slice_find(buf_slice(&out), slice_str(line)) >= 0;
    buf_free(&out);
    return has;
}

static void expect_refusal(const char *path, const char *body, const char *shape)
{
    rig_post(path, body);
    RIG_FINISH();
    ck_assert_msg(rig_has("HTTP/1.1 503 Service Unavailable\r\n"), "%s", rig_got());
    ck_assert_msg(rig_has("\r\nretry-after: 1\r\n") || rig_has("\r\nretry-after: 2\r\n"), "%s",
                  rig_got());
    ck_assert(rig_has("\r\nx-should-retry: true\r\n"));
    ck_assert(rig_has("\r\nx-request-id: "));
    ck_assert_msg(rig_has(shape), "%s", rig_got());
    rig_client_close();
}

START_TEST(refusals_under_overload)
{
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    shed();
    expect_refusal(RIG_CHAT_PATH, RIG_CHAT, "\"type\":\"");
    expect_refusal("/v1/messages", "{}", "{\"type\":\"error\"");
    expect_refusal("/v1/responses", "not even JSON", "\"error\":");
    ck_assert_int_eq(rig.up[0].requests, 0);
    ck_assert_int_eq(rig_rows("1"), 0); // no exchange, no journal record
    ck_assert(metric_has("moongate_rejections_total{reason=\"overload\"} 3\n"));
    rig_check_clean();
    // What is no model call is served.
    rig_client_open();
    rig_send(SLICE_LIT("GET /api/hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
    RIG_FINISH();
    ck_assert(rig_has("HTTP/1.1 200 OK\r\n"));
    rig_client_close();
    rig.flow->overload.is_shedding = false;
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_FINISH();
    ck_assert(rig_has("HTTP/1.1 200 OK\r\n"));
}
END_TEST

START_TEST(streams_that_run_are_left_alone)
{
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_EVENTS_HEAD, RIG_ROLE, RIG_TEXT("one"), RIG_TEXT("two"), RIG_STOP,
             RIG_DONE);
    rig.up[0].allowed = 3;
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_WAIT(rig_has("one"));
    shed();
    rig.up[0].allowed = SIZE_MAX;
    RIG_FINISH();
    ck_assert(rig_has("two"));
    ck_assert(rig_has("[DONE]"));
    ck_assert_int_eq(rig_rows("status = 200 AND is_success = 1"), 1);
}
END_TEST

// Stands for work: time that passes within each turn.
static void pass_time(struct loop_timer *timer)
{
    rig_advance(30);
    loop_timer_start(timer, 1);
}

START_TEST(a_loop_that_is_busy_begins_to_shed)
{
    rig_prepare();
    test_conf_set(rig.store.conf, "limits.queue_delay", "0.02");
    rig_start("", "", "");
    struct loop_timer work;
    loop_timer_init(rig.loop, &work, pass_time);
    loop_timer_start(&work, 1);
    // Turns follow each other at once, unless the machine takes the thread away for a moment.
    for (int i = 0; i < 10000 && !rig.flow->overload.is_shedding; i++)
        (void)loop_turn(rig.loop);
    ck_assert(rig.flow->overload.is_shedding);
    ck_assert(metric_has("moongate_overloaded_workers 1\n"));
    loop_timer_stop(&work);
    rig_advance(100);
    rig_turns(2);
    ck_assert(!rig.flow->overload.is_shedding);
    ck_assert(metric_has("moongate_overloaded_workers 0\n"));
}
END_TEST

// ---- memory

static int64_t resident;
static int64_t read_resident(void *user)
{
    (void)user;
    return resident;
}
static const struct pressure_source DRIVEN = {read_resident, NULL, NULL};

static void set_resident(int64_t bytes)
{
    resident = bytes;
    pressure_sample(rig.shared.pressure);
}

#define ROUTES                                                                                     \
    "routes = { { 'GET', '/open', function() return 200, { a = 1 } end, auth = 'none', "           \
    "about = 'x' }, { 'GET', '/healthz', function() return 200, { a = 1 } end, auth = 'none', "    \
    "about = 'x' }, { 'GET', '/secret', function() return 200, { a = 1 } end, auth = 'admin', "    \
    "about = 'x' } },"

static void get(const char *path, const char *status)
{
    char head[200];
    rig_client_open();
    snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", path);
    rig_send(slice_str(head));
    RIG_WAIT(rig.client.is_over);
    ck_assert_msg(rig_has(status), "%s: %s", path, rig_got());
    rig_client_close();
}

START_TEST(memory_pressure)
{
    rig_prepare();
    rig_start("", ROUTES, "");
    resident = 100;
    ck_assert_int_eq(pressure_new(1000, &DRIVEN, &rig.shared.pressure), 0);
    RIG_SAYS(0, RIG_CLOSE, RIG_EVENTS_HEAD, RIG_ROLE, RIG_TEXT("one"), RIG_TEXT("two"), RIG_STOP,
             RIG_DONE);
    rig.up[0].allowed = 3;
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_WAIT(rig_has("one"));
    set_resident(960);
    ck_assert(metric_has("moongate_memory_pressure 1\n"));
    rig.up[0].allowed = SIZE_MAX; // the one that runs goes on
    RIG_FINISH();
    ck_assert(rig_has("two") && rig_has("[DONE]"));
    rig_client_close();
    expect_refusal(RIG_CHAT_PATH, RIG_CHAT, "short of memory");
    get("/open", "HTTP/1.1 503 ");
    get("/healthz", "HTTP/1.1 200 ");
    get("/api/hello", "HTTP/1.1 200 ");
    get("/secret", "HTTP/1.1 401 "); // admins are let in
    set_resident(920);               // between the two levels nothing changes
    expect_refusal(RIG_CHAT_PATH, RIG_CHAT, "short of memory");
    set_resident(899);
    ck_assert(metric_has("moongate_memory_pressure 0\n"));
    get("/open", "HTTP/1.1 200 ");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_FINISH();
    ck_assert(rig_has("HTTP/1.1 200 OK\r\n"));
    ck_assert(metric_has("moongate_rejections_total{reason=\"memory\"} 3\n"));
    ck_assert_int_eq(rig_rows("1"), 2);
    rig_client_close();
    pressure_free(rig.shared.pressure);
    rig.shared.pressure = NULL;
}
END_TEST

// ---- budgets

START_TEST(a_body_without_room_is_not_even_read)
{
    rig_prepare();
    test_conf_set(rig.store.conf, "limits.bodies_total_bytes", "1048576");
    rig_start("", "", "");
    rig_client_open();
    // Only the head comes: the answer does not wait for the body.
    rig_send(SLICE_LIT("POST " RIG_CHAT_PATH " HTTP/1.1\r\nhost: x\r\ncontent-type: "
                       "application/json\r\ncontent-length: 1048577\r\n\r\n"));
    RIG_WAIT(rig_has("\r\n\r\n"));
    ck_assert_msg(rig_has("HTTP/1.1 503 "), "%s", rig_got());
    ck_assert(rig_has("\r\nretry-after: 1\r\n"));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert(metric_has("moongate_rejections_total{reason=\"bodies\"} 1\n"));
    rig_check_clean();
    // One that is announced holds its room until it leaves.
    rig_client_open();
    rig_send(SLICE_LIT("POST " RIG_CHAT_PATH " HTTP/1.1\r\nhost: x\r\ncontent-type: "
                       "application/json\r\ncontent-length: 1048576\r\n\r\n{"));
    RIG_WAIT(atomic_load(&rig.shared.body_bytes) == 1048576);
    ck_assert(metric_has("moongate_request_bodies_bytes 1048576\n"));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_check_clean();
    // One without a length is counted as it comes.
    rig_client_open();
    rig_send(SLICE_LIT("POST " RIG_CHAT_PATH " HTTP/1.1\r\nhost: x\r\ncontent-type: "
                       "application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n"));
    RIG_WAIT(atomic_load(&rig.shared.body_bytes) == 5);
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_check_clean();
}
END_TEST

// ---- upstreams

static void cap_upstreams(const char *caps[2])
{
    char text[sizeof rig.upstreams_json];
    size_t len = 0;
    snprintf(text, sizeof text, "%s", rig.upstreams_json);
    const char *at = text;
    for (int i = 0; i < 2; i++) {
        const char *end = strstr(at, "\"priority\"");
        ck_assert_ptr_nonnull((void *)(uintptr_t)end);
        len += (size_t)snprintf(rig.upstreams_json + len, sizeof rig.upstreams_json - len,
                                "%.*s\"max_concurrency\":%s,\"priority\"", (int)(end - at), at,
                                caps[i]);
        at = end + strlen("\"priority\"");
    }
    snprintf(rig.upstreams_json + len, sizeof rig.upstreams_json - len, "%s", at);
    rig.store.conf->upstreams_json = slice_str(rig.upstreams_json);
}

// A call on a connection of its own that stays with an upstream; gives its descriptor.
static int hang(size_t upstream)
{
    struct sockaddr_in name = {.sin_family = AF_INET,
                               .sin_port = htons(rig.port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char request[300];
    int before = rig.up[upstream].requests, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int len = snprintf(request, sizeof request,
                       "POST " RIG_CHAT_PATH " HTTP/1.1\r\nhost: x\r\ncontent-length: "
                       "%zu\r\n\r\n%s",
                       strlen(RIG_CHAT_WHOLE), RIG_CHAT_WHOLE);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&name, sizeof name), 0);
    ck_assert_int_eq((int)send(fd, request, (size_t)len, 0), len);
    RIG_WAIT(rig.up[upstream].requests == before + 1);
    return fd;
}

START_TEST(upstreams_have_a_cap)
{
    rig_prepare();
    cap_upstreams((const char *[]){"1", "1"});
    rig_start("", "", "");
    for (size_t i = 0; i < 2; i++) {
        RIG_SAYS(i, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
        rig.up[i].allowed = 0;
    }
    int first = hang(0), second = hang(1); // the first is full: it drops out
    ck_assert_uint_eq(rig_health(0).in_flight, 1);
    ck_assert_uint_eq(rig_health(1).in_flight, 1);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_WAIT(rig.client.is_over);
    ck_assert_msg(rig_has("HTTP/1.1 503 "), "%s", rig_got());
    ck_assert(rig_has("upstream_busy"));
    ck_assert(rig_has("\r\nretry-after: 1\r\n"));
    rig_client_close();
    ck_assert(metric_has("moongate_rejections_total{reason=\"upstream_busy\"} 1\n"));
    ck_assert_int_eq(rig.up[0].requests + rig.up[1].requests, 2);
    // A client that leaves, and an answer that ends, make room again.
    close(first);
    RIG_WAIT(rig_health(0).in_flight == 0);
    rig.up[0].allowed = rig.up[1].allowed = SIZE_MAX;
    RIG_WAIT(rig_health(1).in_flight == 0);
    close(second);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_FINISH();
    ck_assert(rig_has("HTTP/1.1 200 OK\r\n"));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_check_clean();
}
END_TEST

START_TEST(a_failure_gives_the_place_back)
{
    rig_prepare();
    cap_upstreams((const char *[]){"1", "0"});
    rig_start("", "", RIG_RETRY);
    RIG_SAYS(1, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    for (int i = 0; i < 3; i++) { // a 500, a reset, an answer that is cut
        if (i == 0)
            RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("500 X"), "{}");
        else if (i == 1)
            RIG_SAYS(0, RIG_RESET, "");
        else
            RIG_SAYS(0, RIG_CLOSE, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{");
        rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
        RIG_FINISH();
        ck_assert_msg(rig_has("HTTP/1.1 200 OK\r\n"), "%s", rig_got());
        ck_assert_int_eq(rig.up[0].requests, i + 1);
        rig_client_close();
        rig_check_clean();
    }
}
END_TEST

START_TEST(no_socket_for_an_upstream)
{
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    for (int is_claude = 0; is_claude < 2; is_claude++) {
        rig_post(is_claude ? "/v1/messages" : RIG_CHAT_PATH, RIG_CHAT_WHOLE);
        uint64_t accepted = http1_server_counters(rig.server)->accepted;
        // The connection is there (the request is sent by the turn), no further descriptor is.
        while (http1_server_counters(rig.server)->accepted == accepted)
            (void)loop_turn(rig.loop);
        struct rlimit old, none;
        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
        none = old;
        int probe = dup(0);
        none.rlim_cur = (rlim_t)probe;
        close(probe);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
        RIG_WAIT(rig.client.is_over);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
        ck_assert_msg(rig_has("HTTP/1.1 503 "), "%s", rig_got());
        ck_assert(rig_has("\r\nretry-after: "));
        ck_assert_msg(rig_has(is_claude ? "{\"type\":\"error\"" : "\"overloaded\""), "%s",
                      rig_got());
        rig_client_close();
        RIG_WAIT(flow_exchange_count(rig.flow) == 0);
        ck_assert_uint_eq(rig_health(0).failed, 0); // it says nothing of the upstream
        ck_assert_uint_eq(rig_health(0).failures_in_row, 0);
        rig_check_clean();
    }
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_FINISH();
    ck_assert_msg(rig_has("HTTP/1.1 200 OK\r\n"), "%s", rig_got());
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_burst_is_no_overload,
        a_standing_queue_is,
        refusing_is_not_all_it_does,
        bursts_do_not_keep_it_up,
        zero_switches_it_off,
        goodput_and_fast_refusals,
        descriptors_are_shared_out,
        refusals_under_overload,
        streams_that_run_are_left_alone,
        a_loop_that_is_busy_begins_to_shed,
        memory_pressure,
        a_body_without_room_is_not_even_read,
        upstreams_have_a_cap,
        a_failure_gives_the_place_back,
        no_socket_for_an_upstream,
    };
    return rig_main("overload", tests, sizeof tests / sizeof *tests);
}

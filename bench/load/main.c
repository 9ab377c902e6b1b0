// bench_load: load on an HTTP/1.1 gateway, and what came of it as one line of JSON (see --help).
#include "load/load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SWEEP_NS 250000000u
#define LOOK_NS 100000000u // of the wait for idleness
#define IDLE_LOOKS 5
#define IDLE_SHARE 50 // one part in so many
#define REFUSED_PAUSE_NS 500000000u
#define FAILURE_PAUSE_NS 10000000u // a peer that is down is not asked without end

struct load load = {.host = INADDR_LOOPBACK,
                    .conn_count = 1,
                    .seconds = 3,
                    .warmup = 0.3,
                    .timeout = 60,
                    .seed = 1};
static volatile sig_atomic_t is_stopping;

uint64_t load_random(void)
{
    load.random ^= load.random << 13; // xorshift: the same seed gives the same run
    load.random ^= load.random >> 7;
    load.random ^= load.random << 17;
    return load.random;
}

// ---- open loop ---------------------------------------------------------------------------------

static void push_waiting(uint64_t due_ns)
{
    if (load.wait_count == load.wait_capacity) {
        size_t capacity = load.wait_capacity ? 2 * load.wait_capacity : 1024;
        uint64_t *grown = malloc(capacity * sizeof *grown);
        if (!grown)
            exit(1);
        for (size_t i = 0; i < load.wait_count; i++)
            grown[i] = load.waiting[(load.wait_first + i) % load.wait_capacity];
        free(load.waiting);
        load.waiting = grown;
        load.wait_capacity = capacity;
        load.wait_first = 0;
    }
    load.waiting[(load.wait_first + load.wait_count++) % load.wait_capacity] = due_ns;
    if (load.wait_count > load.wait_peak)
        load.wait_peak = load.wait_count;
}

static struct conn *take_idle(void)
{
    struct conn *conn = load.idle;
    if (conn) {
        load.idle = conn->next_idle;
        return conn;
    }
    return load.opened < load.conn_count ? &load.conns[load.opened++] : NULL;
}

// Latency counts from the time at which the request was due, also when it had to wait for a free
// connection: a slow peer cannot slow the question down.
static void on_arrival(struct timer *timer)
{
    uint64_t now = clock_ns();
    while (load.next_arrival_ns <= now && !load.is_over) {
        uint64_t due = load.next_arrival_ns;
        double gap = 1e9 / load.rate;
        if (load.is_poisson)
            gap *= -log(((double)(load_random() >> 11) + 1) / 9007199254740993.0);
        load.next_arrival_ns += (uint64_t)gap;
        struct conn *conn = take_idle();
        if (conn) {
            conn_start(conn, due);
        } else {
            load.late++;
            push_waiting(due);
        }
    }
    timer_start(&load.timers, timer, load.next_arrival_ns);
}

// ---- the run -----------------------------------------------------------------------------------

void load_exchange_over(struct conn *conn)
{
    if (load.requests && load.finished >= load.requests)
        load.is_over = true;
    if (load.mode == MODE_HOLD && conn->was_refused && !load.is_measuring) {
        load.started--;
        load.finished--; // it is asked again, as the answer's Retry-After says
        conn_close(conn, false);
        conn_start_later(conn, clock_ns() + REFUSED_PAUSE_NS + load_random() % REFUSED_PAUSE_NS, 0);
        return;
    }
    if (load.is_over || load.mode == MODE_HOLD)
        return;
    uint64_t pause = conn->has_failed ? FAILURE_PAUSE_NS : 0;
    if (load.mode == MODE_OPEN) {
        if (load.wait_count == 0) {
            conn->next_idle = load.idle;
            load.idle = conn;
            return;
        }
        uint64_t due = load.waiting[load.wait_first];
        load.wait_first = (load.wait_first + 1) % load.wait_capacity;
        load.wait_count--;
        if (conn->phase == PHASE_FREE)
            conn_start_later(conn, clock_ns() + pause, due);
        else
            conn_start(conn, due);
        return;
    }
    // From a timer: a peer that refuses at once must not make this recursive.
    if (conn->phase == PHASE_FREE)
        conn_start_later(conn, clock_ns() + pause, 0);
    else
        conn_start(conn, clock_ns());
}

static void begin_conns(void)
{
    uint64_t now = clock_ns(), ramp = (uint64_t)(load.ramp * 1e9);
    for (uint32_t i = 0; i < load.conn_count; i++) {
        load.conns[i].wire.fd = -1;
        load.conns[i].number_of_source = (uint8_t)i;
    }
    if (load.mode == MODE_OPEN) {
        load.next_arrival_ns = now;
        load.arrival.fire = on_arrival;
        on_arrival(&load.arrival);
        return;
    }
    // Holding many streams: not all SYNs at once.
    if (load.mode == MODE_HOLD && ramp == 0)
        ramp = (uint64_t)load.conn_count * 200000;
    for (uint32_t i = 0; i < load.conn_count; i++) {
        struct conn *conn = &load.conns[i];
        load.opened++;
        if (ramp == 0) {
            conn_start(conn, now);
            continue;
        }
        conn_start_later(conn, now + ramp * i / load.conn_count, 0);
    }
}

static void turn(uint64_t until_ns)
{
    static uint64_t swept_ns;
    struct epoll_event events[512];
    uint64_t wait = timers_run(&load.timers), now = clock_ns();
    if (now - swept_ns > SWEEP_NS) {
        swept_ns = now;
        conn_sweep(now);
    }
    if (wait > SWEEP_NS)
        wait = SWEEP_NS;
    if (until_ns <= now)
        wait = 0;
    else if (wait > until_ns - now)
        wait = until_ns - now;
    int count = clock_wait(load.poll, events, 512, wait);
    for (int i = 0; i < count; i++)
        conn_on_ready(events[i].data.ptr, events[i].events);
}

static void run_until(uint64_t until_ns)
{
    while (!is_stopping && !load.is_over && clock_ns() < until_ns)
        turn(until_ns);
}

static void begin_measuring(struct watch *before)
{
    for (uint32_t i = 0; i < load.job_count; i++)
        job_reset(load.jobs[i]);
    load.late = 0;
    load.wait_peak = load.wait_count;
    if (load.watched && load.drain <= 0)
        watch_read(load.watched, before);
    load.is_measuring = true;
    load.begin_ns = clock_ns();
}

static uint64_t watched_ns(void)
{
    struct watch now;
    uint64_t sum = 0;
    watch_read(load.watched, &now);
    for (size_t i = 0; i < now.count; i++)
        sum += now.threads[i].ns;
    return sum;
}

// What is under way ends, nothing new begins; then until the watched process is idle: what it puts
// off until after the answer is part of the call's cost.
static void drain(void)
{
    uint64_t until = clock_ns() + (uint64_t)(load.drain * 1e9), last = watched_ns();
    load.is_over = true;
    for (int idle = 0; idle < IDLE_LOOKS && clock_ns() < until && !is_stopping;) {
        uint64_t look = clock_ns() + LOOK_NS;
        while (clock_ns() < look && !is_stopping)
            turn(look);
        uint64_t now = watched_ns();
        idle = now - last < LOOK_NS / IDLE_SHARE ? idle + 1 : 0;
        last = now;
    }
}

// Mode hold: until all are open (or failed), then a while of silence, in which the CPU is measured.
static void run_hold(struct watch *before, struct watch *after)
{
    struct watch empty = {0};
    if (load.watched)
        watch_read(load.watched, &empty);
    uint64_t patience = clock_ns() + (uint64_t)(load.timeout * 1e9);
    while (!is_stopping && clock_ns() < patience && load.held + load.finished < load.conn_count)
        turn(patience);
    run_until(clock_ns() + (uint64_t)(load.settle * 1e9));
    if (load.watched)
        watch_read(load.watched, after);
    printf("{\"held\":%llu,\"failed\":%llu,\"rss_empty_kb\":%llu,\"rss_held_kb\":%llu,\"why\":{",
           (unsigned long long)load.held, (unsigned long long)load.finished,
           (unsigned long long)empty.rss_kb, (unsigned long long)after->rss_kb);
    const char *comma = "";
    uint64_t refused = 0;
    for (uint32_t k = 0; k < load.job_count; k++)
        refused += load.jobs[k]->refused;
    if (refused) {
        printf("\"refused\":%llu", (unsigned long long)refused);
        comma = ",";
    }
    for (int i = 0; i < FAIL_COUNT; i++) {
        uint64_t count = 0;
        for (uint32_t k = 0; k < load.job_count; k++)
            count += load.jobs[k]->failures[i];
        if (count) {
            printf("%s\"%s\":%llu", comma, failure_names[i], (unsigned long long)count);
            comma = ",";
        }
    }
    printf("}}\n");
    fflush(stdout);
    begin_measuring(before);
    run_until(load.begin_ns + (uint64_t)(load.seconds * 1e9));
}

static void on_signal(int number)
{
    (void)number;
    is_stopping = 1;
}

static void usage(FILE *to)
{
    fprintf(
        to,
        "usage: bench_load --port N --job JOB [--job JOB…] [options]\n"
        "  --mode closed   (default) each connection asks again when it has its answer\n"
        "  --mode open     --rate N requests per second, whatever the answers do; latency counts\n"
        "                  from the time a request was due (late: had to wait for a connection)\n"
        "  --mode hold     opens one exchange per connection and keeps it; prints a first line "
        "when\n"
        "                  all are open (their first byte has come), stays for --seconds\n"
        "  -c N            connections (open: at most)      --host 127.0.0.1   --tls\n"
        "  --seconds S     measured time; --warmup 0.3 before it, not counted\n"
        "  --requests N    ends after N exchanges of any outcome, without warm-up; --seconds is "
        "the longest\n"
        "  --ramp S        connections begin spread over S  --timeout 60 (of one exchange; 0: "
        "none)\n"
        "  --rate N        --poisson: random gaps           --seed N\n"
        "  --key KEY       as bearer                        --header 'name: value' (up to 16)\n"
        "  --sources N     spreads over N source addresses 127.0.1.1, …\n"
        "  --reconnect     a new connection for each exchange\n"
        "  --settle S      mode hold: waits before memory is read\n"
        "  --watch PID     adds CPU time by thread and memory of that process and its "
        "children\n\n%s\n"
        "Prints one line of JSON at the end: per job done, rps, refused (429, 503), aborted,\n"
        "failures, events, and latency, first_byte (of the body, from the request's sending), "
        "relay\n"
        "(from an event's stamp; stamp=1), gap (between two reads) and refusal in microseconds.\n"
        "Exit 1 when an exchange failed.\n",
        job_help);
}

enum {
    OPT_FIRST = 256,
    OPT_MODE,
    OPT_HOST,
    OPT_PORT,
    OPT_TLS,
    OPT_SECONDS,
    OPT_WARMUP,
    OPT_REQUESTS,
    OPT_RAMP,
    OPT_TIMEOUT,
    OPT_RATE,
    OPT_POISSON,
    OPT_SEED,
    OPT_KEY,
    OPT_HEADER,
    OPT_SOURCES,
    OPT_RECONNECT,
    OPT_SETTLE,
    OPT_DRAIN,
    OPT_WATCH,
    OPT_JOB,
    OPT_HELP
};

struct given {
    const char *jobs[JOBS_MAX], *headers[16], *key, *host;
    size_t job_count, header_count;
};

static void take_mode(const char *name)
{
    if (strcmp(name, "open") == 0)
        load.mode = MODE_OPEN;
    else if (strcmp(name, "hold") == 0)
        load.mode = MODE_HOLD;
    else if (strcmp(name, "closed") != 0) {
        usage(stderr);
        exit(2);
    }
}

static void take_option(int option, struct given *given)
{
    switch (option) {
    case OPT_MODE: take_mode(optarg); break;
    case OPT_HOST: given->host = optarg; break;
    case OPT_PORT: load.port = (uint16_t)atoi(optarg); break;
    case OPT_TLS: load.tls = wire_tls_client(); break;
    case 'c': load.conn_count = (uint32_t)atoi(optarg); break;
    case OPT_SECONDS: load.seconds = atof(optarg); break;
    case OPT_WARMUP: load.warmup = atof(optarg); break;
    case OPT_REQUESTS: load.requests = strtoull(optarg, NULL, 10); break;
    case OPT_RAMP: load.ramp = atof(optarg); break;
    case OPT_TIMEOUT: load.timeout = atof(optarg); break;
    case OPT_RATE: load.rate = atof(optarg); break;
    case OPT_POISSON: load.is_poisson = true; break;
    case OPT_SEED: load.seed = strtoull(optarg, NULL, 10); break;
    case OPT_KEY: given->key = optarg; break;
    case OPT_SOURCES: load.sources = (uint32_t)atoi(optarg) & 0xff; break;
    case OPT_RECONNECT: load.reconnects = true; break;
    case OPT_SETTLE: load.settle = atof(optarg); break;
    case OPT_DRAIN: load.drain = atof(optarg); break;
    case OPT_WATCH: load.watched = atoi(optarg); break;
    case OPT_HEADER:
        if (given->header_count < 16)
            given->headers[given->header_count++] = optarg;
        break;
    case OPT_JOB:
        if (given->job_count < JOBS_MAX)
            given->jobs[given->job_count++] = optarg;
        break;
    case OPT_HELP: usage(stdout); exit(0);
    default: usage(stderr); exit(2);
    }
}

static void read_arguments(int argc, char **argv)
{
    static const struct option options[] = {
        {"mode", 1, NULL, OPT_MODE},         {"host", 1, NULL, OPT_HOST},
        {"port", 1, NULL, OPT_PORT},         {"tls", 0, NULL, OPT_TLS},
        {"seconds", 1, NULL, OPT_SECONDS},   {"warmup", 1, NULL, OPT_WARMUP},
        {"requests", 1, NULL, OPT_REQUESTS}, {"ramp", 1, NULL, OPT_RAMP},
        {"timeout", 1, NULL, OPT_TIMEOUT},   {"rate", 1, NULL, OPT_RATE},
        {"poisson", 0, NULL, OPT_POISSON},   {"seed", 1, NULL, OPT_SEED},
        {"key", 1, NULL, OPT_KEY},           {"header", 1, NULL, OPT_HEADER},
        {"sources", 1, NULL, OPT_SOURCES},   {"reconnect", 0, NULL, OPT_RECONNECT},
        {"settle", 1, NULL, OPT_SETTLE},     {"drain", 1, NULL, OPT_DRAIN},
        {"watch", 1, NULL, OPT_WATCH},       {"job", 1, NULL, OPT_JOB},
        {"help", 0, NULL, OPT_HELP},         {NULL, 0, NULL, 0},
    };
    struct given given = {.host = "127.0.0.1"};
    for (int option; (option = getopt_long(argc, argv, "c:", options, NULL)) != -1;)
        take_option(option, &given);
    struct in_addr address;
    if (optind < argc || load.port == 0 || load.conn_count == 0 ||
        inet_pton(AF_INET, given.host, &address) != 1 ||
        (load.mode == MODE_OPEN && load.rate <= 0)) {
        usage(stderr);
        exit(2);
    }
    load.host = ntohl(address.s_addr);
    load.random = load.seed * 0x9e3779b97f4a7c15u + 1;
    if (given.job_count == 0)
        given.jobs[given.job_count++] = "kind=unary";
    for (size_t i = 0; i < given.job_count; i++) {
        struct job *job =
            job_read(given.jobs[i], given.key, given.headers, given.header_count, given.host);
        load.jobs[load.job_count++] = job;
        load.weights += job->weight;
    }
    if (load.weights == 0) {
        fprintf(stderr, "bench_load: no job has a weight\n");
        exit(2);
    }
}

static bool clean_up(void)
{
    uint64_t failed = 0;
    for (uint32_t i = 0; i < load.conn_count; i++)
        if (load.conns[i].phase != PHASE_FREE || load.conns[i].wire.fd >= 0)
            conn_close(&load.conns[i], false);
    for (uint32_t i = 0; i < load.job_count; i++) {
        for (int k = 0; k < FAIL_COUNT; k++)
            failed += load.jobs[i]->failures[k];
        job_free(load.jobs[i]);
    }
    free(load.conns);
    free(load.waiting);
    timers_free(&load.timers);
    if (load.tls)
        SSL_CTX_free(load.tls);
    close(load.poll);
    return failed == 0;
}

int main(int argc, char **argv)
{
    static struct watch before, after;
    read_arguments(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    struct sigaction stop = {.sa_handler = on_signal};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    prctl(PR_SET_TIMERSLACK, 1UL);
    if (wire_raise_files() < load.conn_count + 16)
        fprintf(stderr, "bench_load: fewer descriptors than connections\n");
    load.poll = epoll_create1(EPOLL_CLOEXEC);
    load.conns = calloc(load.conn_count, sizeof *load.conns);
    if (load.poll < 0 || !load.conns) {
        perror("bench_load");
        return 1;
    }
    if (load.watched)
        watch_read(load.watched, &before);
    if (load.requests) // all of them count
        begin_measuring(&before);
    begin_conns();
    if (load.mode == MODE_HOLD) {
        run_hold(&before, &after);
    } else {
        if (!load.requests) {
            run_until(clock_ns() + (uint64_t)(load.warmup * 1e9));
            begin_measuring(&before);
        }
        run_until(load.begin_ns + (uint64_t)(load.seconds * 1e9));
    }
    double seconds = (double)(clock_ns() - load.begin_ns) / 1e9;
    if (load.watched && load.drain > 0)
        drain();
    if (load.watched)
        watch_read(load.watched, &after);
    load.is_over = true;
    report_print(stdout, seconds, &before, &after);
    return clean_up() ? 0 : 1;
}

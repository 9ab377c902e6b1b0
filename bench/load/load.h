#pragma once
// What the files of bench_load share: jobs (kinds of exchange with their counters), connections,
// the plan of the run. One thread.
#include "common/clock.h"
#include "common/hist.h"
#include "common/http.h"
#include "common/watch.h"
#include "common/wire.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JOBS_MAX 16

enum stage { // where an exchange is given up on purpose
    STAGE_NONE,
    STAGE_CONNECT,
    STAGE_HEAD,  // half of the head is sent
    STAGE_BODY,  // the head and half of the body
    STAGE_SENT,  // the whole request
    STAGE_FIRST, // the first bytes of the answer have come
    STAGE_MID,   // abort_bytes of the answer's body have come
    STAGE_END,   // the answer is whole
    STAGE_ANY,   // one of these by lot
};

enum failure {
    FAIL_CONNECT,
    FAIL_RESET,     // reset or closed in an exchange
    FAIL_TRUNCATED, // closed within the answer
    FAIL_BAD,       // not HTTP
    FAIL_TIMEOUT,
    FAIL_4XX,
    FAIL_5XX,
    FAIL_COUNT
};
extern const char *const failure_names[FAIL_COUNT];

struct job {
    char name[32];
    uint32_t weight;
    char *request; // head and body
    size_t request_len, head_len;
    enum stage abort_at;
    bool aborts_with_fin, stalls; // stalls: reads no more after the first bytes
    uint64_t abort_bytes, abort_wait_ns;
    uint64_t read_rate; // bytes per second; 0: at once
    uint64_t drip_ns;   // the request goes out a byte at a time; 0: at once
    // Counters of the measured time.
    uint64_t done, refused, aborted, events, bytes, misread, failures[FAIL_COUNT];
    struct hist latency, first_byte, relay, gap, refusal;
};

enum phase { PHASE_FREE, PHASE_PAUSED, PHASE_IDLE, PHASE_SENDING, PHASE_READING };

struct conn {
    struct timer timer; // ramp, pacing of reads, delay of an abort
    struct wire wire;
    struct http_in in;
    struct job *job;
    uint8_t phase, abort_at, number_of_source;
    bool is_fresh;    // nothing was sent on it yet
    bool has_body;    // a byte of the answer's body has come
    bool counts;      // began in the measured time
    bool is_held;     // mode hold: open and quiet
    bool has_failed;  // the last exchange
    bool was_refused; // 429, 503
    char last;        // byte of the body, for the borders of events
    uint32_t interest;
    uint64_t sent, begun_ns, sent_ns, read_ns, body_bytes;
    struct conn *next_idle;
};

enum mode { MODE_CLOSED, MODE_OPEN, MODE_HOLD };

struct load {
    enum mode mode;
    uint32_t host, sources;
    uint16_t port;
    SSL_CTX *tls;
    uint32_t conn_count;
    double seconds, warmup, ramp, rate, timeout, settle, drain;
    uint64_t requests; // 0: by time
    bool is_poisson, reconnects;
    uint64_t seed, random;
    pid_t watched;

    struct job *jobs[JOBS_MAX];
    uint32_t job_count, weights;
    struct conn *conns;
    uint32_t opened;
    struct conn *idle;
    int poll;
    struct timers timers;
    uint64_t started, finished;    // exchanges of all kinds, whole run
    uint64_t answered, all_events; // whole run
    uint64_t held, lost, late;
    uint64_t begin_ns; // of the measured time
    bool is_measuring, is_over;

    // Arrivals of the open loop that wait for a connection.
    uint64_t *waiting;
    size_t wait_first, wait_count, wait_capacity, wait_peak;
    uint64_t next_arrival_ns;
    struct timer arrival;
};
extern struct load load;

uint64_t load_random(void);

// jobs.c: reads "kind=…,…"; ends the program with a message when it cannot.
struct job *job_read(const char *text, const char *key, const char *const *headers,
                     size_t header_count, const char *host);
void job_reset(struct job *job);
void job_free(struct job *job);
extern const char job_help[];

// conn.c
void conn_start(struct conn *conn, uint64_t begun_ns); // picks a job by weight
// The same from a timer; begun_ns 0: then.
void conn_start_later(struct conn *conn, uint64_t when_ns, uint64_t begun_ns);
void conn_on_ready(struct conn *conn, uint32_t events);
void conn_sweep(uint64_t now_ns); // timeouts
void conn_close(struct conn *conn, bool with_reset);

// main.c: an exchange is over, in whatever way; the connection is idle or free.
void load_exchange_over(struct conn *conn);

// report.c
void report_print(FILE *to, double seconds, const struct watch *before, const struct watch *after);

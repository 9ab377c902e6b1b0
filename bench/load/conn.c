#include "load/load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define STAMP "@t="
#define STAMP_DIGITS 19
#define PACE_NS 50000000u // a slow reader reads every 50 ms
#define READ_SIZE (256 << 10)
#define STALL_SIZE 2048 // before it stalls

const char *const failure_names[FAIL_COUNT] = {
    "connect", "reset", "truncated", "bad", "timeout", "status_4xx", "status_5xx",
};

static void on_timer(struct timer *timer);

static void want(struct conn *conn, uint32_t events)
{
    if (conn->interest == events || conn->wire.fd < 0)
        return;
    struct epoll_event event = {.events = events, .data.ptr = conn};
    epoll_ctl(load.poll, conn->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, conn->wire.fd, &event);
    conn->interest = events;
}

void conn_close(struct conn *conn, bool with_reset)
{
    timer_stop(&load.timers, &conn->timer);
    wire_close(&conn->wire, with_reset);
    http_in_free(&conn->in);
    conn->interest = 0;
    conn->phase = PHASE_FREE;
}

static void over(struct conn *conn)
{
    timer_stop(&load.timers, &conn->timer);
    load.finished++;
    if (conn->is_held) {
        conn->is_held = false;
        load.lost++;
    }
    load_exchange_over(conn);
}

static void fail(struct conn *conn, enum failure failure)
{
    // Exchanges that began before the measured time count too: they failed within it.
    conn->job->failures[failure]++;
    conn->has_failed = true;
    conn_close(conn, false);
    over(conn);
}

static void give_up(struct conn *conn)
{
    conn->job->aborted++;
    conn_close(conn, !conn->job->aborts_with_fin);
    over(conn);
}

// Is this the place to give up? true: the connection is gone or soon will be.
static bool gives_up_at(struct conn *conn, enum stage stage)
{
    if (conn->abort_at != stage)
        return false;
    if (conn->job->abort_wait_ns) {
        conn->phase = PHASE_PAUSED;
        want(conn, EPOLLIN);
        timer_start(&load.timers, &conn->timer, clock_ns() + conn->job->abort_wait_ns);
    } else {
        give_up(conn);
    }
    return true;
}

// ---- sending -----------------------------------------------------------------------------------

static void pump(struct conn *conn)
{
    const struct job *job = conn->job;
    size_t until = job->request_len;
    if (conn->abort_at == STAGE_HEAD)
        until = job->head_len / 2;
    else if (conn->abort_at == STAGE_BODY)
        until = job->head_len + (job->request_len - job->head_len) / 2;
    if (conn->sent == 0 && gives_up_at(conn, STAGE_CONNECT))
        return;
    while (conn->sent < until) {
        conn->sent_ns = clock_ns(); // before: the peer may answer while we are still in the call
        size_t len = job->drip_ns ? 1 : until - (size_t)conn->sent;
        ssize_t sent = wire_write(&conn->wire, job->request + conn->sent, len);
        if (sent == -EAGAIN) {
            want(conn, conn->wire.reads_to_write ? EPOLLIN : EPOLLIN | EPOLLOUT);
            return;
        }
        if (sent < 0) {
            fail(conn, conn->sent == 0 && conn->is_fresh ? FAIL_CONNECT : FAIL_RESET);
            return;
        }
        conn->sent += (uint64_t)sent;
        if (job->drip_ns && conn->sent < until) {
            conn->is_fresh = false;
            want(conn, EPOLLIN); // it may be answered, or be closed, before
            timer_start(&load.timers, &conn->timer, clock_ns() + job->drip_ns);
            return;
        }
    }
    conn->is_fresh = false;
    if (until < job->request_len) {
        (void)gives_up_at(conn, (enum stage)conn->abort_at);
        return;
    }
    conn->phase = PHASE_READING;
    if (gives_up_at(conn, STAGE_SENT))
        return;
    if (job->read_rate) { // reads by the clock, not by readiness
        want(conn, EPOLLRDHUP);
        timer_start(&load.timers, &conn->timer, clock_ns() + PACE_NS);
    } else {
        want(conn, EPOLLIN);
    }
}

static struct job *choose_job(void)
{
    if (load.job_count == 1)
        return load.jobs[0];
    uint64_t lot = load_random() % load.weights;
    for (uint32_t i = 0; i < load.job_count; i++) {
        if (lot < load.jobs[i]->weight)
            return load.jobs[i];
        lot -= load.jobs[i]->weight;
    }
    return load.jobs[0];
}

// A slow reader's kernel must not take in its place what it has not read; two paces fit.
static int receive_size(const struct job *job)
{
    uint64_t size = job->read_rate / (1000000000u / PACE_NS) * 2;
    if (job->read_rate == 0)
        return job->stalls ? 8192 : 0;
    return size < 8192 ? 8192 : size > 1 << 22 ? 1 << 22 : (int)size;
}

void conn_start(struct conn *conn, uint64_t begun_ns)
{
    if (load.requests && load.started >= load.requests) { // all are under way
        conn->phase = conn->wire.fd < 0 ? PHASE_FREE : PHASE_IDLE;
        return;
    }
    load.started++;
    conn->job = choose_job();
    conn->abort_at = conn->job->abort_at;
    if (conn->abort_at == STAGE_ANY)
        conn->abort_at = (uint8_t)(STAGE_CONNECT + load_random() % (STAGE_END - STAGE_CONNECT + 1));
    conn->begun_ns = begun_ns;
    conn->counts = load.is_measuring;
    conn->sent = conn->read_ns = conn->body_bytes = 0;
    conn->has_body = conn->has_failed = conn->was_refused = false;
    conn->last = '\0';
    conn->timer.fire = on_timer;
    conn->phase = PHASE_SENDING;
    if (conn->wire.fd < 0) {
        uint32_t number = load.sources ? conn->number_of_source % load.sources : 0;
        uint32_t source = load.sources ? 0x7f000101u + number : 0;
        int err = wire_connect(&conn->wire, load.host, load.port, source, receive_size(conn->job),
                               load.tls);
        http_in_init(&conn->in, true);
        conn->interest = 0;
        conn->is_fresh = true;
        if (err) {
            fail(conn, FAIL_CONNECT);
            return;
        }
        want(conn, EPOLLIN | EPOLLOUT); // sends when it is connected
        return;
    }
    pump(conn);
}

void conn_start_later(struct conn *conn, uint64_t when_ns, uint64_t begun_ns)
{
    conn->phase = PHASE_FREE;
    conn->begun_ns = begun_ns;
    conn->timer.fire = on_timer;
    timer_start(&load.timers, &conn->timer, when_ns);
}

// ---- reading -----------------------------------------------------------------------------------

static void read_stamps(struct conn *conn, struct span body, uint64_t now)
{
    const char *at = body.ptr, *end = body.ptr + body.len;
    while ((at = memmem(at, (size_t)(end - at), STAMP, sizeof STAMP - 1)) != NULL) {
        at += sizeof STAMP - 1;
        if (end - at < STAMP_DIGITS) { // cut by the end of a read: rare, and counted
            conn->job->misread++;
            return;
        }
        uint64_t stamp = 0;
        for (int i = 0; i < STAMP_DIGITS; i++)
            stamp = stamp * 10 + (uint64_t)(at[i] - '0');
        if (stamp && stamp < now)
            hist_add(&conn->job->relay, now - stamp);
        at += STAMP_DIGITS;
    }
}

static uint64_t count_events(struct conn *conn, struct span body)
{
    uint64_t count = conn->last == '\n' && body.ptr[0] == '\n';
    const char *at = body.ptr, *end = body.ptr + body.len;
    while ((at = memmem(at, (size_t)(end - at), "\n\n", 2)) != NULL) {
        count++;
        at += 2;
    }
    conn->last = body.ptr[body.len - 1];
    return count;
}

static bool on_body(struct conn *conn, struct span body)
{
    struct job *job = conn->job;
    uint64_t now = conn->read_ns;
    if (!conn->has_body) {
        conn->has_body = true;
        if (conn->counts)
            hist_add(&job->first_byte, now - conn->sent_ns);
        if (load.mode == MODE_HOLD && !conn->is_held && conn->in.status == 200) {
            conn->is_held = true;
            load.held++;
        }
    }
    conn->body_bytes += body.len;
    job->bytes += body.len;
    if (body.len) {
        uint64_t events = count_events(conn, body);
        job->events += events;
        load.all_events += events;
        if (load.is_measuring)
            read_stamps(conn, body, now);
    }
    return !(conn->body_bytes >= job->abort_bytes && gives_up_at(conn, STAGE_MID));
}

static void on_end(struct conn *conn)
{
    struct job *job = conn->job;
    uint64_t took = clock_ns() - conn->begun_ns;
    uint16_t status = conn->in.status;
    bool is_last = conn->in.is_last || load.reconnects;
    if (gives_up_at(conn, STAGE_END))
        return;
    if (status == 503 || status == 429) {
        job->refused++;
        conn->was_refused = true;
        hist_add(&job->refusal, took);
    } else if (status >= 400) {
        job->failures[status >= 500 ? FAIL_5XX : FAIL_4XX]++;
    } else {
        job->done++;
        load.answered++;
        if (conn->counts)
            hist_add(&job->latency, took);
    }
    if (is_last)
        conn_close(conn, false);
    else
        conn->phase = PHASE_IDLE;
    over(conn);
}

// Takes what was read; false: the connection went on to something else, or is gone.
static bool take_input(struct conn *conn, struct span input)
{
    struct span out;
    for (;;) {
        switch (http_in_next(&conn->in, &input, &out)) {
        case HTTP_MORE: return true;
        case HTTP_HEAD:
            if (gives_up_at(conn, STAGE_FIRST))
                return false;
            break;
        case HTTP_BODY:
            if (!on_body(conn, out))
                return false;
            break;
        case HTTP_END: on_end(conn); return false;
        case HTTP_BAD: fail(conn, FAIL_BAD); return false;
        }
    }
}

static void on_closed(struct conn *conn, ssize_t err)
{
    bool is_end = false;
    if (conn->phase == PHASE_IDLE) { // an idle connection may go: the next exchange opens one
        conn_close(conn, false);
        return;
    }
    bool is_proper = http_in_closed(&conn->in, &is_end);
    if (is_end && err == 0) {
        on_end(conn);
        return;
    }
    if (conn->phase == PHASE_PAUSED) {
        give_up(conn);
        return;
    }
    fail(conn, conn->is_fresh ? FAIL_CONNECT : is_proper ? FAIL_RESET : FAIL_TRUNCATED);
}

// Reads at most budget bytes.
static void read_some(struct conn *conn, size_t budget)
{
    static char input[READ_SIZE];
    while (budget > 0) {
        size_t size = budget < sizeof input ? budget : sizeof input;
        ssize_t got = wire_read(&conn->wire, input, size);
        if (got == -EAGAIN)
            return;
        if (got <= 0) {
            on_closed(conn, got);
            return;
        }
        uint64_t now = clock_ns();
        if (conn->read_ns && conn->phase == PHASE_READING && load.is_measuring)
            hist_add(&conn->job->gap, now - conn->read_ns);
        conn->read_ns = now;
        budget -= (size_t)got;
        if (conn->phase != PHASE_READING && conn->phase != PHASE_SENDING)
            continue; // between exchanges, or waiting to give up: not looked at
        if (!take_input(conn, (struct span){input, (size_t)got}))
            return;
        if ((size_t)got < size && !conn->wire.ssl)
            return;
    }
}

static void on_timer(struct timer *timer)
{
    struct conn *conn = (struct conn *)timer;
    if (conn->phase == PHASE_FREE) { // its place in the ramp
        conn_start(conn, conn->begun_ns ? conn->begun_ns : clock_ns());
    } else if (conn->phase == PHASE_PAUSED) {
        give_up(conn);
    } else if (conn->phase == PHASE_SENDING && conn->job->drip_ns) {
        pump(conn);
    } else if (conn->phase == PHASE_READING && conn->job->read_rate) {
        uint64_t each = conn->job->read_rate * PACE_NS / 1000000000u;
        uint64_t pause = each ? PACE_NS : 1000000000u / conn->job->read_rate;
        timer_start(&load.timers, &conn->timer, clock_ns() + pause);
        read_some(conn, each ? (size_t)each : 1);
    }
}

void conn_on_ready(struct conn *conn, uint32_t events)
{
    if (conn->phase == PHASE_FREE)
        return;
    if (conn->interest == EPOLLRDHUP) { // a slow reader: what was sent before the end is read on
        if (events & EPOLLERR || conn->job->stalls)
            on_closed(conn, -ECONNRESET);
        else
            epoll_ctl(load.poll, EPOLL_CTL_DEL, conn->wire.fd, NULL);
        conn->interest = 0;
        return;
    }
    if (conn->phase == PHASE_SENDING && (conn->is_fresh || !conn->job->drip_ns)) {
        if (events & EPOLLERR && conn->is_fresh) {
            fail(conn, FAIL_CONNECT);
            return;
        }
        pump(conn);
        if (conn->phase != PHASE_SENDING && conn->phase != PHASE_READING)
            return;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && conn->wire.fd >= 0)
        read_some(conn, conn->job->stalls ? STALL_SIZE : READ_SIZE);
    if (conn->phase == PHASE_READING && conn->job->stalls && conn->has_body)
        want(conn, EPOLLRDHUP);
}

void conn_sweep(uint64_t now_ns)
{
    if (load.timeout <= 0)
        return;
    uint64_t longest = (uint64_t)(load.timeout * 1e9);
    for (uint32_t i = 0; i < load.opened; i++) {
        struct conn *conn = &load.conns[i];
        bool is_busy = conn->phase == PHASE_SENDING || conn->phase == PHASE_READING;
        if (is_busy && !conn->is_held && !conn->job->read_rate && now_ns > conn->begun_ns + longest)
            fail(conn, FAIL_TIMEOUT);
    }
}

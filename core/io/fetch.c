// The life of a fetch, the same for every transport: look the host up, check the addresses, hand
// over to the transport at the end of the turn, watch the timers, read the head, and tell the
// handler. States: transport.h. A fetch dies in two ways, both ending in recycle(): finish() tells
// on_done, fetch_cancel() tells nobody and is swept at the end of turn.
#include "io/fetch.h"

#include "io/curl_api.h"
#include "io/tls_memory.h"
#include "io/transport.h"
#include "io/transport_tls.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define LIBRARY_LOOK_MS 10 // between looks at whether libcurl is loaded

enum { CARRIER_HTTP1, CARRIER_CURL, CARRIERS };

struct fetcher {
    struct loop *loop;
    struct resolver *resolver;
    struct fetch_carrier carriers[CARRIERS];
    bool uses_curl; // for everything
    struct loop_task task;
    struct list live, spare, starting, resuming, dead;
    struct list awaiting; // libcurl's loading
    struct loop_timer library_timer;
    size_t spare_count;
    struct fetcher_counters counters;
};

static void run_fetcher(struct loop_task *task);
static void on_library_timer(struct loop_timer *timer);
static void on_timer(struct loop_timer *timer);
static void on_looked_up(void *user, const struct resolver_result *result);
static void finish(struct fetch *fetch, int err);

// ---- the fetcher

int fetch_global_init(void)
{
    // Writes to a socket that the peer closed, also OpenSSL's, must be errors and not signals.
    signal(SIGPIPE, SIG_IGN);
    tls_memory_init();
    return transport_tls_init();
}

void fetch_global_cleanup(void)
{
    curl_api_cleanup();
    transport_tls_cleanup();
}

int fetcher_new(struct loop *loop, struct resolver *resolver, struct fetcher **out)
{
    struct fetcher *fetcher = calloc(1, sizeof *fetcher);
    if (fetcher == NULL)
        return GW_ENOMEM;
    fetcher->loop = loop;
    fetcher->resolver = resolver;
    fetcher->carriers[CARRIER_HTTP1].transport = &transport_http1;
    fetcher->carriers[CARRIER_CURL].transport = &transport_curl;
    list_init(&fetcher->live);
    list_init(&fetcher->spare);
    list_init(&fetcher->starting);
    list_init(&fetcher->resuming);
    list_init(&fetcher->dead);
    list_init(&fetcher->awaiting);
    loop_timer_init(loop, &fetcher->library_timer, on_library_timer);
    loop_task_init(&fetcher->task, run_fetcher);
    for (int i = 0; i < CARRIERS; i++) {
        struct fetch_carrier *carrier = &fetcher->carriers[i];
        int err = carrier->transport->open(fetcher, loop, &carrier->self);
        if (err) {
            while (i-- > 0)
                fetcher->carriers[i].transport->close(fetcher->carriers[i].self);
            free(fetcher);
            return err;
        }
    }
    *out = fetcher;
    return 0;
}

void fetcher_use_curl(struct fetcher *fetcher)
{
    fetcher->uses_curl = true;
}

// Proxies are libcurl's: the request's form, their credentials and CONNECT.
static const struct fetch_carrier *choose_carrier(const struct fetch *fetch)
{
    const struct fetcher *fetcher = fetch->fetcher;
    bool is_own = fetch->proxy == NULL && !fetcher->uses_curl;
    return &fetcher->carriers[is_own ? CARRIER_HTTP1 : CARRIER_CURL];
}

static void stop_transfer(struct fetch *fetch)
{
    if (fetch->transfer != NULL)
        fetch->carrier->transport->stop(fetch->carrier->self, fetch);
}

static void free_fetch(struct fetch *fetch)
{
    buf_free(&fetch->upload);
    arena_free(fetch->arena);
    free(fetch);
}

static void recycle(struct fetch *fetch)
{
    struct fetcher *fetcher = fetch->fetcher;
    list_remove(&fetch->queued);
    list_remove(&fetch->resuming);
    list_remove(&fetch->node);
    fetcher->counters.active--;
    if (fetcher->spare_count >= FETCH_SPARE_MAX) {
        free_fetch(fetch);
        return;
    }
    arena_reset(fetch->arena);
    buf_free(&fetch->upload);
    list_push_front(&fetcher->spare, &fetch->node);
    fetcher->spare_count++;
}

static void sweep_dead(struct fetcher *fetcher)
{
    struct list *node;
    while ((node = list_pop_front(&fetcher->dead)) != NULL) {
        struct fetch *fetch = list_entry(node, struct fetch, queued);
        stop_transfer(fetch);
        recycle(fetch);
    }
}

void fetcher_free(struct fetcher *fetcher)
{
    if (fetcher == NULL)
        return;
    struct list *node, *next;
    list_each_safe(node, next, &fetcher->live) fetch_cancel(list_entry(node, struct fetch, node));
    sweep_dead(fetcher);
    for (int i = 0; i < CARRIERS; i++)
        fetcher->carriers[i].transport->close(fetcher->carriers[i].self);
    loop_task_cancel(&fetcher->task);
    loop_timer_stop(&fetcher->library_timer);
    while ((node = list_pop_front(&fetcher->spare)) != NULL)
        free_fetch(list_entry(node, struct fetch, node));
    free(fetcher);
}

const struct fetcher_counters *fetcher_counters(const struct fetcher *fetcher)
{
    // The one gauge that the transports keep is brought up to date when somebody looks.
    struct fetcher_counters *counters = (struct fetcher_counters *)&fetcher->counters;
    counters->idle_connections = 0;
    for (int i = 0; i < CARRIERS; i++) {
        const struct fetch_carrier *carrier = &fetcher->carriers[i];
        counters->idle_connections += carrier->transport->idle_connections(carrier->self);
    }
    return counters;
}

struct fetcher_counters *fetcher_count(struct fetcher *fetcher)
{
    return &fetcher->counters;
}

void fetcher_wake(struct fetcher *fetcher)
{
    loop_defer(fetcher->loop, &fetcher->task);
}

// libcurl has had time to be loaded: those that wait for it try again.
static void on_library_timer(struct loop_timer *timer)
{
    struct fetcher *fetcher = list_entry(timer, struct fetcher, library_timer);
    struct list *node;
    while ((node = list_pop_front(&fetcher->awaiting)) != NULL)
        list_push_back(&fetcher->starting, node);
    fetcher_wake(fetcher);
}

static void run_fetcher(struct loop_task *task)
{
    struct fetcher *fetcher = list_entry(task, struct fetcher, task);
    struct list *node;
    sweep_dead(fetcher);
    while ((node = list_pop_front(&fetcher->starting)) != NULL) {
        struct fetch *fetch = list_entry(node, struct fetch, queued);
        int err = fetch->err;
        fetch->carrier = choose_carrier(fetch);
        if (err == 0 && fetch->carrier == &fetcher->carriers[CARRIER_CURL]) {
            int ready = curl_api_want();
            if (ready == 0) {
                list_push_back(&fetcher->awaiting, &fetch->queued);
                loop_timer_start(&fetcher->library_timer, LIBRARY_LOOK_MS);
                continue;
            }
            err = ready < 0 ? ready : 0;
            if (err)
                fetch_note(fetch, err, "libcurl could not be loaded; the log says why");
        }
        if (err == 0) {
            fetch->phase = FETCH_CONNECT;
            fetch->phase_ms = loop_now_ms(fetcher->loop);
            err = fetch->carrier->transport->start(fetch->carrier->self, fetch);
        }
        if (err)
            finish(fetch, err);
    }
    while ((node = list_pop_front(&fetcher->resuming)) != NULL) {
        struct fetch *fetch = list_entry(node, struct fetch, resuming);
        fetch->carrier->transport->resume(fetch->carrier->self, fetch);
    }
    for (int i = 0; i < CARRIERS; i++)
        fetcher->carriers[i].transport->run(fetcher->carriers[i].self);
}

// ---- starting

static struct fetch *take_fetch(struct fetcher *fetcher)
{
    struct list *node = list_pop_front(&fetcher->spare);
    struct fetch *fetch;
    struct arena *arena;
    if (node != NULL) {
        fetcher->spare_count--;
        fetch = list_entry(node, struct fetch, node);
        arena = fetch->arena;
    } else {
        fetch = malloc(sizeof *fetch);
        arena = arena_new(1024);
        if (fetch == NULL || arena == NULL) {
            free(fetch);
            arena_free(arena);
            return NULL;
        }
        arena_set_wiped(arena); // it holds upstream credentials
    }
    memset(fetch, 0, sizeof *fetch);
    fetch->arena = arena;
    fetch->fetcher = fetcher;
    list_init(&fetch->node);
    list_init(&fetch->queued);
    list_init(&fetch->resuming);
    buf_init(&fetch->upload, FETCH_UPLOAD_MAX);
    loop_timer_init(fetcher->loop, &fetch->timer, on_timer);
    list_push_back(&fetcher->live, &fetch->node);
    fetcher->counters.active++;
    return fetch;
}

static void look_up(struct fetch *fetch, struct slice host)
{
    struct fetcher *fetcher = fetch->fetcher;
    int err =
        resolver_start(fetcher->resolver, fetcher->loop, host, on_looked_up, fetch, &fetch->query);
    if (err) {
        fetch_note(fetch, err == GW_EINVAL ? GW_EDNS : err, "the look-up could not be started");
        list_push_back(&fetcher->starting, &fetch->queued);
        fetcher_wake(fetcher);
    }
}

static void arm_timer(struct fetch *fetch);

int fetch_start(struct fetcher *fetcher, const struct fetch_request *request,
                const struct fetch_handler *handler, void *user, struct fetch **out)
{
    struct fetch *fetch = take_fetch(fetcher);
    if (fetch == NULL)
        return GW_ENOMEM;
    int err = fetch_copy_request(fetch, request);
    if (err) {
        recycle(fetch);
        return err;
    }
    fetch->handler = *handler;
    fetch->user = user;
    fetch->started_ms = fetch->phase_ms = loop_now_ms(fetcher->loop);
    fetch->phase = FETCH_LOOKUP;
    fetcher->counters.started++;
    *out = fetch;
    // Behind a proxy the name is the proxy's to resolve. Where addresses are checked ours must
    // pass as well; the proxy's own answer cannot be seen from here.
    fetch->is_lookup_of_target = fetch->proxy != NULL && fetch->check_address;
    look_up(fetch, fetch->is_lookup_of_target ? fetch->url.host : fetch->dial_host);
    arm_timer(fetch);
    return 0;
}

// ---- addresses

static void on_looked_up(void *user, const struct resolver_result *result)
{
    struct fetch *fetch = user;
    struct fetcher *fetcher = fetch->fetcher;
    fetch->query = NULL;
    bool is_dialled = !fetch->is_lookup_of_target;
    bool must_pass = fetch->proxy == NULL || !is_dialled;
    fetch->address_count = 0;
    if (result->err) {
        fetch_note(fetch, result->err, "host name not found");
    } else if ((fetch->addresses = arena_alloc(
                    fetch->arena, (result->count + 1) * sizeof *fetch->addresses)) == NULL) {
        fetch_note(fetch, GW_ENOMEM, "out of memory");
    } else {
        struct fetch_address bytes;
        for (size_t i = 0; i < result->count; i++) {
            const struct sockaddr *address = (const void *)&result->addresses[i];
            if (fetch_read_address(address, &bytes) &&
                (!must_pass || fetch_address_passes(fetch, address)))
                fetch->addresses[fetch->address_count++] = bytes;
        }
        if (fetch->address_count == 0)
            fetch_note(fetch, result->count ? GW_EDENIED : GW_EDNS,
                       result->count ? "the host's address is not allowed" : "no address found");
    }
    if (fetch->err == 0 && !is_dialled) {
        fetch->is_lookup_of_target = false;
        look_up(fetch, fetch->dial_host);
        return;
    }
    uint64_t now = loop_now_ms(fetcher->loop);
    fetch->info.lookup_ms = (uint32_t)(now - fetch->started_ms);
    struct in6_addr ignored;
    char host[INET6_ADDRSTRLEN + 1];
    if (fetch->dial_host.len < sizeof host) {
        memcpy(host, fetch->dial_host.ptr, fetch->dial_host.len);
        host[fetch->dial_host.len] = '\0';
        fetch->is_dial_literal =
            inet_pton(AF_INET, host, &ignored) == 1 || inet_pton(AF_INET6, host, &ignored) == 1;
    }
    list_push_back(&fetcher->starting, &fetch->queued);
    fetcher_wake(fetcher);
}

// ---- timers

static uint64_t phase_deadline(const struct fetch *fetch, uint32_t *limit_ms, const char **name)
{
    uint64_t from = fetch->phase_ms;
    *limit_ms = 0;
    *name = "";
    switch (fetch->phase) {
    case FETCH_LOOKUP:
        from = fetch->started_ms;
        *limit_ms = fetch->timers.connect_ms;
        *name = "look-up";
        break;
    case FETCH_CONNECT:
        from = fetch->started_ms;
        *limit_ms = fetch->timers.connect_ms;
        *name = "connect";
        break;
    case FETCH_TLS:
        *limit_ms = fetch->timers.tls_ms;
        *name = "TLS handshake";
        break;
    case FETCH_SEND: // while it waits for bytes of its own client that one's timer counts
        *limit_ms = fetch->is_upload_waiting ? 0 : fetch->timers.idle_ms;
        *name = "sending the body";
        break;
    case FETCH_WAIT:
        *limit_ms = fetch->timers.first_byte_ms;
        *name = "first byte";
        break;
    case FETCH_BODY:
        *limit_ms = fetch->is_paused || fetch->is_upload_waiting ? 0 : fetch->timers.idle_ms;
        *name = "idle";
        break;
    case FETCH_OVER: break;
    }
    return *limit_ms ? from + *limit_ms : UINT64_MAX;
}

static uint64_t next_deadline(const struct fetch *fetch, uint32_t *limit_ms, const char **name)
{
    uint64_t deadline = phase_deadline(fetch, limit_ms, name);
    uint64_t total =
        fetch->timers.total_ms ? fetch->started_ms + fetch->timers.total_ms : UINT64_MAX;
    if (total < deadline) {
        *limit_ms = fetch->timers.total_ms;
        *name = "total";
        return total;
    }
    return deadline;
}

// Called when a phase begins, not per event: on expiry the last activity is looked at again.
static void arm_timer(struct fetch *fetch)
{
    uint32_t limit_ms;
    const char *name;
    uint64_t deadline = next_deadline(fetch, &limit_ms, &name);
    uint64_t now = loop_now_ms(fetch->fetcher->loop);
    if (deadline == UINT64_MAX)
        loop_timer_stop(&fetch->timer);
    else
        loop_timer_start(&fetch->timer, deadline > now ? deadline - now : 0);
}

static void enter_phase(struct fetch *fetch, enum fetch_phase phase)
{
    fetch->phase = phase;
    fetch->phase_ms = loop_now_ms(fetch->fetcher->loop);
    arm_timer(fetch);
}

static void on_timer(struct loop_timer *timer)
{
    struct fetch *fetch = list_entry(timer, struct fetch, timer);
    uint32_t limit_ms;
    const char *name;
    uint64_t deadline = next_deadline(fetch, &limit_ms, &name);
    if (loop_now_ms(fetch->fetcher->loop) < deadline) {
        arm_timer(fetch);
        return;
    }
    char detail[80];
    snprintf(detail, sizeof detail, "timeout: %s after %u ms", name, limit_ms);
    fetch->err = 0;
    fetch_on_finished(fetch, GW_ETIMEOUT, detail);
}

// ---- what the transport tells

void fetch_note(struct fetch *fetch, int err, const char *detail)
{
    if (fetch->err != 0)
        return;
    fetch->err = err;
    snprintf(fetch->info.detail, sizeof fetch->info.detail, "%s", detail ? detail : "");
}

static uint32_t phase_age_ms(const struct fetch *fetch)
{
    return (uint32_t)(loop_now_ms(fetch->fetcher->loop) - fetch->phase_ms);
}

void fetch_on_connected(struct fetch *fetch)
{
    if (fetch->phase != FETCH_CONNECT || fetch->is_dead)
        return;
    fetch->info.connect_ms = phase_age_ms(fetch);
    enter_phase(fetch, FETCH_TLS);
}

int fetch_on_request(struct fetch *fetch, const char *peer_ip, bool is_reused)
{
    if (fetch->is_dead)
        return GW_ECANCELLED;
    if (!fetch_peer_passes(fetch, peer_ip)) {
        fetch_note(fetch, GW_EDENIED, "the connected address is not allowed");
        return GW_EDENIED;
    }
    if (fetch->phase == FETCH_TLS)
        fetch->info.tls_ms = phase_age_ms(fetch);
    else if (!is_reused)
        fetch->info.connect_ms = phase_age_ms(fetch);
    fetch->head_mark = arena_mark(fetch->arena);
    fetch->info.is_reused = is_reused;
    fetch->info.sent_any = true;
    if (is_reused)
        fetch->fetcher->counters.connections_reused++;
    else
        fetch->fetcher->counters.connections_opened++;
    bool is_sent = !fetch->has_body ||
                   (fetch->body_length >= 0 && fetch->body_sent == (uint64_t)fetch->body_length);
    enter_phase(fetch, is_sent ? FETCH_WAIT : FETCH_SEND);
    return 0;
}

void fetch_on_sent(struct fetch *fetch, size_t len)
{
    fetch->body_sent += len;
    if (fetch->phase == FETCH_SEND || fetch->phase == FETCH_BODY)
        fetch->phase_ms = loop_now_ms(fetch->fetcher->loop);
    if (fetch->phase != FETCH_SEND)
        return;
    if (len == 0 || (fetch->body_length >= 0 && fetch->body_sent == (uint64_t)fetch->body_length))
        enter_phase(fetch, FETCH_WAIT);
}

int fetch_on_head_line(struct fetch *fetch, struct slice line)
{
    if (fetch->is_dead)
        return GW_ECANCELLED;
    bool was_final = fetch->head.is_final;
    const char *why;
    int err = fetch_head_line(&fetch->head, fetch->arena, line, &why);
    if (err) {
        fetch_note(fetch, err, why);
        return err;
    }
    if (was_final || !fetch->head.is_final)
        return 0;
    fetch->info.got_head = true;
    if (fetch->phase == FETCH_WAIT)
        fetch->info.first_byte_ms = (uint32_t)(loop_now_ms(fetch->fetcher->loop) - fetch->phase_ms);
    enter_phase(fetch, FETCH_BODY);
    if (fetch->handler.on_head)
        fetch->handler.on_head(fetch->user, fetch->head.status, fetch->head.headers,
                               fetch->head.count);
    arena_rewind(fetch->arena, fetch->head_mark);
    fetch->head.headers = NULL;
    fetch->head.count = fetch->head.capacity = 0;
    return fetch->is_dead ? GW_ECANCELLED : 0;
}

enum fetch_went fetch_on_bytes(struct fetch *fetch, struct slice bytes)
{
    if (fetch->is_dead)
        return FETCH_WENT_STOP;
    if (bytes.len == 0)
        return FETCH_WENT_ON;
    fetch->phase_ms = loop_now_ms(fetch->fetcher->loop);
    if (fetch->max_body_bytes && bytes.len > fetch->max_body_bytes - fetch->body_received) {
        fetch_note(fetch, GW_ETOOBIG, "the answer's body is too big");
        return FETCH_WENT_STOP;
    }
    enum fetch_verdict verdict =
        fetch->handler.on_body ? fetch->handler.on_body(fetch->user, bytes) : FETCH_CONSUMED;
    if (fetch->is_dead)
        return FETCH_WENT_STOP;
    if (verdict == FETCH_PAUSE) {
        fetch->is_paused = true;
        return FETCH_WENT_PAUSED;
    }
    fetch->body_received += bytes.len;
    return FETCH_WENT_ON;
}

static void finish(struct fetch *fetch, int err)
{
    struct fetcher *fetcher = fetch->fetcher;
    if (fetch->is_dead)
        return; // cancelled by another's callback in this turn: the sweep has it
    stop_transfer(fetch);
    if (fetch->query != NULL)
        resolver_cancel(fetch->query);
    fetch->query = NULL;
    loop_timer_stop(&fetch->timer);
    list_remove(&fetch->queued);
    list_remove(&fetch->resuming);
    fetch->phase = FETCH_OVER;
    fetch->is_dead = true;
    fetch->info.total_ms = (uint32_t)(loop_now_ms(fetcher->loop) - fetch->started_ms);
    fetch->info.bytes_received = fetch->head.byte_count + fetch->body_received;
    fetcher->counters.done++;
    if (fetch->handler.on_done)
        fetch->handler.on_done(fetch->user, err, &fetch->info);
    recycle(fetch);
}

void fetch_on_finished(struct fetch *fetch, int err, const char *detail)
{
    if (fetch->is_dead)
        return;
    if (err)
        fetch_note(fetch, err, detail);
    finish(fetch, err ? fetch->err : 0);
}

// ---- what the caller asks

void fetch_cancel(struct fetch *fetch)
{
    if (fetch->is_dead)
        return;
    struct fetcher *fetcher = fetch->fetcher;
    fetch->is_dead = true;
    fetch->phase = FETCH_OVER;
    fetch->handler = (struct fetch_handler){0};
    if (fetch->query != NULL)
        resolver_cancel(fetch->query);
    fetch->query = NULL;
    loop_timer_stop(&fetch->timer);
    list_remove(&fetch->resuming);
    list_remove(&fetch->queued);
    list_push_back(&fetcher->dead, &fetch->queued);
    fetcher->counters.cancelled++;
    fetcher_wake(fetcher);
}

static void queue_resume(struct fetch *fetch)
{
    if (fetch->transfer == NULL || !list_is_empty(&fetch->resuming))
        return;
    list_push_back(&fetch->fetcher->resuming, &fetch->resuming);
    fetcher_wake(fetch->fetcher);
}

void fetch_resume(struct fetch *fetch)
{
    if (fetch->is_dead || !fetch->is_paused)
        return;
    fetch->is_paused = false;
    fetch->phase_ms = loop_now_ms(fetch->fetcher->loop);
    arm_timer(fetch);
    queue_resume(fetch);
}

static void wake_upload(struct fetch *fetch)
{
    if (!fetch->is_upload_waiting)
        return;
    fetch->is_upload_waiting = false;
    if (fetch->phase == FETCH_SEND || fetch->phase == FETCH_BODY)
        enter_phase(fetch, fetch->phase);
    queue_resume(fetch);
}

int fetch_write(struct fetch *fetch, struct slice bytes)
{
    if (fetch->is_dead)
        return GW_ERESET;
    if (!fetch->is_streamed || fetch->is_ended)
        return GW_EINVAL;
    if (fetch->body_length >= 0 &&
        bytes.len > (uint64_t)fetch->body_length - fetch->body_sent - fetch->upload.len)
        return GW_EINVAL;
    int err = buf_append(&fetch->upload, bytes);
    if (err == GW_ETOOBIG || fetch->upload.len >= FETCH_UPLOAD_LOW)
        fetch->wants_writable = true;
    if (err)
        return err == GW_ETOOBIG ? GW_EFULL : err;
    wake_upload(fetch);
    return 0;
}

size_t fetch_write_queued(const struct fetch *fetch)
{
    return fetch->upload.len;
}

void fetch_write_end(struct fetch *fetch)
{
    if (fetch->is_dead || !fetch->is_streamed)
        return;
    fetch->is_ended = true;
    wake_upload(fetch);
}

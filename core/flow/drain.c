// The client has left and the upstream's policy is `drain`: its answer is read on, bounded, for the
// true usage only. Nothing is written to anybody; the exchange finishes as "client gone" with what
// the upstream reported. DESIGN §6 (disconnect policy).
#include "flow/exchange.h"

#define DRAIN_MS 30000
#define DRAIN_BYTES (1u << 20)

bool drain_start(struct exchange *ex)
{
    bool is_waiting = ex->state == EXCHANGE_FETCH || ex->state == EXCHANGE_RELAY;
    if (!ex->fetch || !ex->drains_on_disconnect || !is_waiting || ex->hook_pending ||
        ex->is_upload || ex->relay.mode == RELAY_RAW)
        return false;
    ex->drains = true;
    ctx_flag(&ex->ctx, "drain");
    loop_task_cancel(&ex->relay.resume);
    loop_timer_start(&ex->hold_timer, DRAIN_MS);
    if (ex->relay.is_paused) {
        ex->relay.is_paused = false;
        fetch_resume(ex->fetch);
    }
    return true;
}

void drain_over(struct exchange *ex, const char *reason)
{
    attempt_cancel(ex, reason);
    script_cancel(&ex->ctx);
    finish_start(ex);
}

static int on_event(void *user, const struct sse_event *event)
{
    struct exchange *ex = user;
    struct dialect_info info;
    memset(&info, 0, sizeof info);
    dialect_inspect(&ex->reader, event, &info);
    if (info.class != DIALECT_EVENT_NOISE && info.class != DIALECT_EVENT_PREAMBLE &&
        info.class != DIALECT_EVENT_ERROR)
        ex->relay.is_committed = true;
    return GW_OK;
}

enum fetch_verdict drain_on_body(struct exchange *ex, struct slice bytes)
{
    struct relay *relay = &ex->relay;
    int err = GW_OK;
    ex->drained_bytes += bytes.len;
    if (relay->mode == RELAY_UNKNOWN)
        relay_sniff_mode(ex, bytes);
    if (relay->mode == RELAY_EVENTS)
        err = sse_feed(&relay->sse, bytes, on_event, ex);
    else if (relay->mode == RELAY_WHOLE)
        err = buf_append(&relay->held, bytes);
    if (err || ex->drained_bytes > DRAIN_BYTES)
        drain_over(ex, "client gone, drain limit");
    return FETCH_CONSUMED;
}

void drain_on_done(struct exchange *ex, int err)
{
    struct relay *relay = &ex->relay;
    bool is_answer = ex->upstream_status >= 200 && ex->upstream_status < 300;
    if (is_answer && relay->mode == RELAY_EVENTS)
        (void)!sse_finish(&relay->sse, on_event, ex);
    if (is_answer && relay->mode == RELAY_WHOLE && err == GW_OK) {
        struct dialect_info info;
        bool is_error = false;
        memset(&info, 0, sizeof info);
        ex->reader.dialect->inspect_body(&ex->reader, buf_slice(&relay->held), &info, &is_error);
        relay->is_committed = ex->reader.has_end = !is_error;
    }
    drain_over(ex, err ? "client gone, upstream cut" : "client gone, drained");
}

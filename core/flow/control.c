// The control socket: POST /control/v1/{verb} with a JSON body, answered with JSON. Only the unix
// socket reaches it (mode 0600: whoever may open it is the operator). The verbs of the command line
// are thin clients of this.
#include "base/log.h"
#include "flow/exchange.h"
#include "flow/probe.h"
#include "state/admin.h"

#include <stdio.h>
#include <stdlib.h>

#define BODY_BYTES (1u << 20)

struct control_call {
    enum visitor visitor;
    struct flow *flow;
    struct http1_stream *stream; // NULL once closed
    struct buf body;
    struct admin_job *job;    // on its way
    struct loop_message done; // the lane's answer
    struct probe *probe;
    bool is_answered, is_waiting;
};

static const struct {
    const char *name;
    enum admin_verb verb;
} VERBS[] = {
    {"key.create", ADMIN_KEY_CREATE},
    {"key.list", ADMIN_KEY_LIST},
    {"key.revoke", ADMIN_KEY_REVOKE},
    {"upstream.create", ADMIN_UPSTREAM_CREATE},
    {"upstream.list", ADMIN_UPSTREAM_LIST},
    {"upstream.update", ADMIN_UPSTREAM_UPDATE},
    {"upstream.delete", ADMIN_UPSTREAM_DELETE},
    {"log.list", ADMIN_LOG_LIST},
    {"price.put", ADMIN_PRICE_PUT},
    {"price.list", ADMIN_PRICE_LIST},
};

static void respond(struct control_call *call, int status, struct slice body)
{
    struct http1_header type = {SLICE_LIT("content-type"), SLICE_LIT("application/json")};
    if (!call->stream || call->is_answered)
        return;
    call->is_answered = true;
    if (http1_respond(call->stream, status, &type, 1, body) != GW_OK)
        http1_abort(call->stream, "answer could not be sent");
}

static void respond_error(struct control_call *call, int status, struct slice code,
                          struct slice message)
{
    struct buf out = BUF_INIT(BODY_BYTES);
    struct json_out json;
    json_begin(&json, &out);
    json_object(&json);
    json_key(&json, "error");
    json_object(&json);
    json_key(&json, "code");
    json_text(&json, code);
    json_key(&json, "message");
    json_text(&json, message);
    json_object_end(&json);
    json_object_end(&json);
    if (json_end(&json) == GW_OK)
        respond(call, status, buf_slice(&out));
    buf_free(&out);
}

// While a lane or a reload holds the call, the loop must stay to get it back.
static void set_waiting(struct control_call *call, bool is_waiting)
{
    call->is_waiting = is_waiting;
    call->flow->awaited += is_waiting ? 1 : (size_t)-1;
}

static void free_call(struct control_call *call)
{
    if (call->job)
        admin_job_free(call->job);
    buf_free(&call->body);
    free(call);
}

void control_open(struct flow *flow, struct http1_stream *stream)
{
    struct control_call *call = calloc(1, sizeof *call);
    if (!call) {
        http1_abort(stream, "out of memory");
        return;
    }
    call->visitor = VISITOR_CONTROL;
    call->flow = flow;
    call->stream = stream;
    buf_init(&call->body, BODY_BYTES);
    http1_limit_body(stream, BODY_BYTES);
    http1_set_user(stream, call);
}

void control_on_body(struct control_call *call, struct slice bytes)
{
    if (!call->is_answered && buf_append(&call->body, bytes) != GW_OK)
        respond_error(call, 413, SLICE_LIT("request_too_large"),
                      SLICE_LIT("The body is too large."));
}

// Worker thread: the lane has answered.
static void on_job_delivered(struct loop_message *message)
{
    struct control_call *call =
        (struct control_call *)((char *)message - offsetof(struct control_call, done));
    struct admin_job *job = call->job;
    set_waiting(call, false);
    if (!call->stream) {
        free_call(call);
        return;
    }
    if (job->job.err == GW_OK) {
        respond(call, 200, job->result_json.len ? job->result_json : SLICE_LIT("{}"));
        return;
    }
    int status = job->job.err == GW_ENOTFOUND ? 404 : job->job.err == GW_EINTERNAL ? 500 : 400;
    respond_error(call, status,
                  job->error_code.len ? job->error_code : slice_str(gw_err_name(job->job.err)),
                  job->error_message.len ? job->error_message : slice_str(job->job.error));
}

// Lane thread.
static void on_job_done(struct store_job *store_job)
{
    struct admin_job *job = (struct admin_job *)store_job;
    struct control_call *call = job->user;
    call->done.deliver = on_job_delivered;
    loop_post(call->flow->options.loop, &call->done);
}

static void start_job(struct control_call *call, enum admin_verb verb)
{
    struct slice body = call->body.len ? buf_slice(&call->body) : SLICE_LIT("{}");
    call->job = admin_job_new(call->flow->options.store, verb, body);
    if (!call->job) {
        respond_error(call, 503, SLICE_LIT("out_of_memory"), SLICE_LIT("Out of memory."));
        return;
    }
    call->job->user = call;
    call->job->job.done = on_job_done;
    set_waiting(call, true);
    if (store_submit(call->flow->options.store, &call->job->job) != GW_OK) {
        set_waiting(call, false);
        respond_error(call, 503, SLICE_LIT("busy"), SLICE_LIT("The database queue is full."));
    }
}

static void on_reloaded(void *arg, int err, struct slice problems)
{
    struct control_call *call = arg;
    set_waiting(call, false);
    if (!call->stream) {
        free_call(call);
        return;
    }
    if (err)
        respond_error(call, 400, SLICE_LIT("reload_failed"), problems);
    else
        respond(call, 200, SLICE_LIT("{\"reloaded\":true}"));
}

static void start_reload(struct control_call *call)
{
    struct flow_shared *shared = call->flow->options.shared;
    set_waiting(call, true);
    int err = shared->reload ? shared->reload(shared, call->flow->options.loop, on_reloaded, call)
                             : GW_EDENIED;
    if (err) {
        set_waiting(call, false);
        respond_error(call, 409, SLICE_LIT("reload_failed"),
                      SLICE_LIT("Another reload is under way."));
    }
}

static void on_upgraded(void *arg, int err, struct slice text)
{
    struct control_call *call = arg;
    char body[96];
    set_waiting(call, false);
    if (!call->stream) {
        free_call(call);
        return;
    }
    if (err) {
        respond_error(call, 400, SLICE_LIT("upgrade_failed"), text);
        return;
    }
    int len = snprintf(body, sizeof body, "{\"upgraded\":true,\"pid\":%.*s}",
                       (int)(text.len < 20 ? text.len : 20), text.ptr);
    respond(call, 200, slice_of(body, (size_t)len));
}

static void start_upgrade(struct control_call *call)
{
    struct flow_shared *shared = call->flow->options.shared;
    set_waiting(call, true);
    int err = shared->upgrade ? shared->upgrade(shared, call->flow->options.loop, on_upgraded, call)
                              : GW_EDENIED;
    if (err) {
        set_waiting(call, false);
        respond_error(call, 409, SLICE_LIT("upgrade_failed"),
                      SLICE_LIT("Another upgrade is under way, or the gateway stops."));
    }
}

static void respond_text(struct control_call *call, int (*write)(void *user, struct buf *out))
{
    struct buf out = BUF_INIT(16u << 20);
    if (write(call->flow, &out) == GW_OK)
        respond(call, 200, buf_slice(&out));
    else
        respond_error(call, 500, SLICE_LIT("internal_error"), SLICE_LIT("Out of memory."));
    buf_free(&out);
}

static void on_probed(void *user, int status, uint32_t latency_ms, struct slice error)
{
    struct control_call *call = user;
    struct buf out = BUF_INIT(BODY_BYTES);
    struct json_out json;
    call->probe = NULL;
    json_begin(&json, &out);
    json_object(&json);
    json_key(&json, "ok");
    json_bool(&json, status >= 200 && status < 400);
    json_key(&json, "status");
    json_i64(&json, status);
    json_key(&json, "latency_ms");
    json_u64(&json, latency_ms);
    json_key(&json, "error");
    json_text(&json, error);
    json_object_end(&json);
    if (json_end(&json) == GW_OK)
        respond(call, 200, buf_slice(&out));
    buf_free(&out);
}

// {"name": "…"}
static void start_probe(struct control_call *call)
{
    struct json_doc *doc = NULL;
    const char *why = "";
    size_t at;
    if (json_parse(buf_slice(&call->body), BODY_BYTES, &doc, &why, &at) != GW_OK) {
        respond_error(call, 400, SLICE_LIT("invalid_json"), slice_str(why));
        return;
    }
    struct slice name = json_string_slice(yyjson_obj_get(json_root(doc), "name"));
    probe_start(call->flow, name.ptr ? name : SLICE_LIT(""), on_probed, call, &call->probe);
    json_doc_free(doc);
}

static int write_ready(void *user, struct buf *out)
{
    bool is_ready;
    return process_ready(user, out, &is_ready);
}

void control_on_complete(struct control_call *call)
{
    if (call->is_answered)
        return;
    struct slice verb = slice_from(http1_request(call->stream)->path, strlen("/control/v1/"));
    if (slice_is(verb, "reload")) {
        start_reload(call);
        return;
    }
    if (slice_is(verb, "upgrade")) {
        start_upgrade(call);
        return;
    }
    if (slice_is(verb, "upstream.test")) {
        start_probe(call);
        return;
    }
    if (slice_is(verb, "info")) {
        respond_text(call, process_info);
        return;
    }
    if (slice_is(verb, "health")) {
        respond_text(call, write_ready);
        return;
    }
    for (size_t i = 0; i < sizeof VERBS / sizeof *VERBS; i++) {
        if (slice_is(verb, VERBS[i].name)) {
            start_job(call, VERBS[i].verb);
            return;
        }
    }
    respond_error(call, 404, SLICE_LIT("unknown_verb"),
                  SLICE_LIT("The running gateway does not know this verb: is it older than the "
                            "command line tool?"));
}

void control_on_close(struct control_call *call)
{
    call->stream = NULL;
    if (call->probe)
        probe_cancel(call->probe);
    if (!call->is_waiting)
        free_call(call);
}

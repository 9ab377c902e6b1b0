#pragma once
// What plugins may know of one exchange: plain data that flow fills in and the Lua object `ctx`
// reads. Flow embeds a struct ctx in its exchange; Lua holds only {id, generation} of it. Slices
// live in the exchange's arena. Worker thread only.
#include "base/arena.h"
#include "base/id.h"
#include "base/list.h"
#include "base/slab.h"
#include "base/slice.h"
#include "codec/dialect.h"
#include "codec/patch.h"
#include "codec/secret.h"
#include "codec/skim.h"
#include "codec/usage.h"
#include "io/http1.h"
#include <stdint.h>

#define CTX_MAX_CANDIDATES 64
#define CTX_MAX_ATTEMPTS 16
#define CTX_MAX_FLAGS 16

struct ctx_attempt {
    int64_t upstream_id;
    int32_t status; // 0: no answer
    uint32_t duration_ms;
    struct slice reason; // constant or arena
};

// Why an attempt failed (for reply and error hooks).
enum ctx_failure {
    CTX_FAILURE_NONE,
    CTX_FAILURE_CONNECT,
    CTX_FAILURE_DNS,
    CTX_FAILURE_TLS,
    CTX_FAILURE_TIMEOUT,
    CTX_FAILURE_RESET,
    CTX_FAILURE_PROTOCOL,
    CTX_FAILURE_STATUS, // the upstream answered with an error status
    CTX_FAILURE_STREAM, // an error inside a 200 stream, or a stream that was cut
    CTX_FAILURE_LOCAL,  // the gateway itself had no socket or memory for it
};

struct ctx_key { // copied from the directory
    int64_t id;  // 0: the caller has no key
    char uid[37];
    int64_t user_id; // 0: none
    struct slice prefix, name;
    const int64_t *upstream_ids;
    size_t upstream_count;
    bool has_upstream_list;
    const struct slice *allowed_models;
    size_t allowed_model_count;
};

struct ctx_user {
    int64_t id; // 0: none
    struct slice name, group;
    int64_t discount_ppm;
};

// The upstream of the current attempt.
struct ctx_upstream {
    int64_t id; // 0: none yet
    char uid[37];
    struct slice name, provider, model; // model: the upstream's name for it
    int status;                         // of its answer; 0: none yet
    const struct http1_header *headers;
    size_t header_count;
};

// What prepare hooks change in the outgoing request; flow applies it (fields become splices).
enum ctx_edit_kind { CTX_EDIT_SET, CTX_EDIT_DROP, CTX_EDIT_RENAME };
struct ctx_edit {
    enum ctx_edit_kind kind;
    struct slice path, value; // value: JSON text, or the new name
};
struct ctx_outgoing {
    struct ctx_edit *edits;
    size_t edit_count, edit_capacity;
    struct http1_header *headers; // value.ptr NULL: drop the header
    size_t header_count, header_capacity;
    struct slice path, query; // ptr NULL: unchanged
};

// A plugin's own answer to a call.
enum ctx_answer { CTX_ANSWER_NONE, CTX_ANSWER_WHOLE, CTX_ANSWER_EVENTS };
struct ctx_respond {
    enum ctx_answer kind;
    int status;
    struct slice content_type, body; // WHOLE
    const struct http1_header *headers;
    size_t header_count;
    struct slice plugin; // who answered
};

struct ctx {
    struct arena *arena;
    struct slab_handle handle; // of the exchange: what Lua holds
    void *exchange;            // flow's
    struct gw_id id;
    char id_text[37];
    struct slice request_id;
    const struct http1_request *request;
    struct slice client_ip;
    enum dialect_id dialect;
    enum dialect_op op;
    struct slice model; // requested; empty when the route has none
    bool is_stream;
    bool has_max_output;
    uint64_t max_output;
    struct slice body; // the complete request body; empty for streamed uploads
    int64_t started_wall_ms;
    uint64_t started_boot_ms;

    bool is_identified;
    struct slice identity_name;
    struct ctx_key key;
    struct ctx_user user;

    int64_t candidates[CTX_MAX_CANDIDATES]; // upstream ids in order
    size_t candidate_count;
    uint32_t attempt; // 1 for the first
    struct ctx_attempt attempts[CTX_MAX_ATTEMPTS];
    size_t attempt_count;
    bool can_retry;
    struct ctx_upstream upstream;
    struct ctx_outgoing outgoing;

    bool is_denied; // set by ctx:deny or by flow
    struct dialect_error error;
    enum ctx_failure failure;
    struct ctx_respond respond;

    bool has_usage;
    struct usage usage;
    bool has_cost;
    int64_t cost_nano, price_version;
    int status; // sent to the client; 0: nothing yet
    uint32_t ttft_ms, duration_ms;
    struct slice finish_reason;
    struct slice flags[CTX_MAX_FLAGS]; // constants or arena
    size_t flag_count;

    // The script floor's own: registry references and the generation that runs this exchange.
    struct script_generation *generation;
    struct list script_node;  // of the generation's bound exchanges
    int lua_object, lua_vars; // 0: not made yet
    int lua_answer;           // the function or list of an EVENTS answer; 0: none
    void *pending;            // the coroutine of the hook in progress
    void *answer;             // the answer in progress
    uint8_t pending_hook;
    uint8_t hook_step;
    bool is_hook_sync; // run_from is on the C stack
    bool hook_is_retry;
    struct slice hook_text, body_text;
};

// Adds once; silently drops beyond the maximum. flag: constant or arena.
void ctx_flag(struct ctx *ctx, const char *flag);
bool ctx_has_flag(const struct ctx *ctx, const char *flag);
// Takes the caller's credential from the three headers (SURFACES §0.3). GW_ENOTFOUND: none;
// GW_EINVAL: two that differ. The slice borrows the request's memory.
GW_MUSTCHECK int ctx_credential(const struct http1_request *request, struct slice *out);

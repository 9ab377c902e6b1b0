#pragma once
// Which call a path is: model routes and their dialect, the few routes the core answers itself, or
// nothing (then a plugin route, else 404). Paths are matched raw, after the prefixes of
// SURFACES §0.3 are taken off. Pure; any thread.
#include "base/slice.h"
#include "codec/dialect.h"
#include "io/http1.h"

enum route_kind {
    ROUTE_NONE,
    ROUTE_MODEL,      // a model call: an exchange
    ROUTE_MODELS,     // GET /v1/models[/{id}]
    ROUTE_STATEFUL,   // state at the provider: only for upstreams with passthrough = "all"
    ROUTE_HELLO,      // HEAD /, HEAD|GET /api/hello
    ROUTE_DOUBLE_V1,  // /v1/v1/…
    ROUTE_UNKNOWN_V1, // below /v1 but no route of ours
    ROUTE_CONTROL,    // /control/v1/…, control socket only
};

struct route {
    enum route_kind kind;
    enum dialect_id dialect;
    enum dialect_op op;
    const char *name; // for metrics and logs: "/v1/chat/completions"
    unsigned methods; // bits 1 << enum http1_method
    bool needs_model; // a missing model is 400
    bool may_stream;
};

// Gives the route (constant; kind NONE when it is none of ours) and the canonical path (a part of
// `path`, beginning with /v1/…). prefix: PROXY_PREFIX.
const struct route *router_match(enum http1_method method, struct slice path, struct slice prefix,
                                 struct slice *canonical);
bool router_allows(const struct route *route, enum http1_method method);
// The dialect in which an error for this path is told, also for paths that match nothing.
enum dialect_id router_error_dialect(struct slice path, struct slice prefix,
                                     bool has_anthropic_version);

#pragma once
// One look at an upstream, asked by the operator (`moongate upstream test NAME`): GET /v1/models
// with the upstream's own credential. Nothing is billed and no exchange is logged.
#include "base/slice.h"
#include "flow/flow.h"

struct probe;
// ok: the upstream answered below 400. error: constant or borrowed text, empty when it answered.
typedef void (*probe_cb)(void *user, int status, uint32_t latency_ms, struct slice error);

// Gives a running probe, or calls back before it returns with *out NULL. Worker thread.
void probe_start(struct flow *flow, struct slice upstream_name, probe_cb on_result, void *user,
                 struct probe **out);
void probe_cancel(struct probe *probe); // the callback will not come

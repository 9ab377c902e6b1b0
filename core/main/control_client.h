#pragma once
// The command line's side of the control socket: one blocking request, one JSON answer. Main
// thread of a verb, never inside the gateway.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"

// POSTs body to /control/v1/{verb}. *status gets the HTTP status, answer its body. GW_ECONNECT:
// nobody listens at the path (the gateway does not run).
GW_MUSTCHECK int control_ask(const char *socket_path, const char *verb, struct slice body,
                             int *status, struct buf *answer);

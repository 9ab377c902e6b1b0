#pragma once
// Finds one form field near the beginning of a multipart/form-data body (RFC 7578), so that an
// upload can be routed by its `model` field and then streamed. Pure; any thread.
#include "base/err.h"
#include "base/slice.h"

// The boundary parameter of a content type; GW_EINVAL when there is none or it is not legal.
GW_MUSTCHECK int multipart_boundary(struct slice content_type, struct slice *boundary);
// Value of the first field `name` in the bytes so far. GW_EAGAIN: not complete yet; GW_ENOTFOUND:
// the body ended without it; GW_EINVAL: not a multipart body. The value borrows body's memory.
GW_MUSTCHECK int multipart_field(struct slice body, struct slice boundary, const char *name,
                                 struct slice *value);

#pragma once
// A provider's quirks: Lua data compiled at load into this immutable struct, used by flow without
// entering Lua. Owned by a plugin generation; copied into the attempt's arena where it must live
// longer than the turn. Any thread that holds the generation.
#include "base/slice.h"
#include "codec/dialect.h"
#include "io/http1.h"
#include <stdint.h>

enum quirk_stream_usage {
    QUIRK_STREAM_USAGE_INJECT, // add stream_options.include_usage (default for OpenAI dialects)
    QUIRK_STREAM_USAGE_NEVER,  // the upstream refuses stream_options
    QUIRK_STREAM_USAGE_SENT,   // it sends usage unasked
};

struct quirk_field {
    struct slice path, value; // value: new name (rename) or JSON text (default)
};

struct quirk {
    struct slice provider;
    bool speaks[DIALECT_COUNT];            // defaults for upstreams of this provider
    struct slice auth_header, auth_prefix; // "authorization" "Bearer "
    const struct http1_header *default_headers, *set_headers;
    size_t default_header_count, set_header_count;
    const struct slice *forward, *drop_headers;
    size_t forward_count, drop_header_count;
    const struct slice *drop_fields;
    size_t drop_field_count;
    const struct quirk_field *rename_fields, *default_fields;
    size_t rename_field_count, default_field_count;
    struct slice paths[8]; // by enum dialect_op; empty: the route's own
    struct slice query;    // template; empty: none
    enum quirk_stream_usage stream_usage;
    bool has_usage_rule;
    enum usage_rule usage_rule;
};
// Fills {model} and {config.name} in a template; values are percent-encoded as one segment.
// config_json: the upstream's own settings. GW_EINVAL: an unknown placeholder.
GW_MUSTCHECK int quirk_expand(struct slice template, struct slice model, struct slice config_json,
                              struct arena *arena, struct slice *out);

#include "flow/router.h"

#define GET (1u << HTTP1_GET)
#define POST (1u << HTTP1_POST)
#define ANY                                                                                        \
    (GET | POST | 1u << HTTP1_HEAD | 1u << HTTP1_PUT | 1u << HTTP1_DELETE | 1u << HTTP1_PATCH)

struct entry {
    const char *path;
    bool is_prefix; // matches path and everything below path + "/"
    struct route route;
};

// Static paths before prefixes; the first match wins.
static const struct entry ENTRIES[] = {
    {"/v1/chat/completions",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_CHAT, "/v1/chat/completions", POST, true, true}},
    {"/v1/completions",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_COMPLETIONS, "/v1/completions", POST, true, true}},
    {"/v1/embeddings",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_EMBEDDINGS, "/v1/embeddings", POST, true, false}},
    {"/v1/responses",
     false,
     {ROUTE_MODEL, DIALECT_RESPONSES, DIALECT_OP_RESPONSES, "/v1/responses", POST, true, true}},
    {"/v1/messages",
     false,
     {ROUTE_MODEL, DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES, "/v1/messages", POST, true, true}},
    {"/v1/messages/count_tokens",
     false,
     {ROUTE_MODEL, DIALECT_ANTHROPIC, DIALECT_OP_COUNT_TOKENS, "/v1/messages/count_tokens", POST,
      false, false}},
    {"/v1/moderations",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/moderations", POST, false, false}},
    {"/v1/rerank",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/rerank", POST, true, false}},
    {"/v1/images/generations",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/images", POST, false, true}},
    {"/v1/images/edits",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/images", POST, false, true}},
    {"/v1/images/variations",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/images", POST, false, false}},
    {"/v1/audio/speech",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/audio", POST, true, true}},
    {"/v1/audio/transcriptions",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/audio", POST, true, true}},
    {"/v1/audio/translations",
     false,
     {ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/audio", POST, true, false}},
    {"/v1/models",
     true,
     {ROUTE_MODELS, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/models", GET | 1u << HTTP1_HEAD, false,
      false}},
#define STATEFUL(prefix)                                                                           \
    {                                                                                              \
        prefix, true,                                                                              \
        {                                                                                          \
            ROUTE_STATEFUL, DIALECT_OPENAI, DIALECT_OP_OTHER, prefix, ANY, false, false            \
        }                                                                                          \
    }
    STATEFUL("/v1/files"),
    STATEFUL("/v1/uploads"),
    STATEFUL("/v1/batches"),
    STATEFUL("/v1/assistants"),
    STATEFUL("/v1/threads"),
    STATEFUL("/v1/fine_tuning"),
    STATEFUL("/v1/vector_stores"),
    STATEFUL("/v1/containers"),
    STATEFUL("/v1/realtime"),
    STATEFUL("/v1/responses"),
    STATEFUL("/v1/chat/completions"),
    STATEFUL("/v1/conversations"),
    STATEFUL("/v1/videos"),
    {"/v1/messages/batches",
     true,
     {ROUTE_STATEFUL, DIALECT_ANTHROPIC, DIALECT_OP_OTHER, "/v1/messages/batches", ANY, false,
      false}},
    {"/v1/v1",
     true,
     {ROUTE_DOUBLE_V1, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/v1", ANY, false, false}},
    {"/v1", true, {ROUTE_UNKNOWN_V1, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1", ANY, false, false}},
};

static const struct route HELLO = {ROUTE_HELLO,  DIALECT_NONE,           DIALECT_OP_OTHER,
                                   "/api/hello", GET | 1u << HTTP1_HEAD, false,
                                   false};
static const struct route CONTROL = {
    ROUTE_CONTROL, DIALECT_NONE, DIALECT_OP_OTHER, "/control", POST | GET, false, false};
static const struct route NONE = {ROUTE_NONE, DIALECT_NONE, DIALECT_OP_OTHER, "other", 0,
                                  false,      false};

static bool is_below(struct slice path, struct slice prefix)
{
    return prefix.len > 0 && path.len >= prefix.len &&
           memcmp(path.ptr, prefix.ptr, prefix.len) == 0 &&
           (path.len == prefix.len || path.ptr[prefix.len] == '/');
}

// Takes one of the mounts off: "/openai", "/anthropic", PROXY_PREFIX.
static struct slice strip_mount(struct slice path, struct slice prefix, bool *is_anthropic)
{
    const struct slice mounts[] = {SLICE_LIT("/openai"), SLICE_LIT("/anthropic"), prefix};
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        if (!is_below(path, mounts[i]))
            continue;
        struct slice rest = slice_from(path, mounts[i].len);
        if (is_below(rest, SLICE_LIT("/v1"))) {
            *is_anthropic = i == 1;
            return rest;
        }
    }
    return path;
}

const struct route *router_match(enum http1_method method, struct slice path, struct slice prefix,
                                 struct slice *canonical)
{
    bool is_anthropic = false;
    *canonical = path;
    struct slice rest = strip_mount(path, prefix, &is_anthropic);
    if (is_below(rest, SLICE_LIT("/v1"))) {
        *canonical = rest;
        const struct route *other_method = NULL;
        for (size_t i = 0; i < sizeof ENTRIES / sizeof *ENTRIES; i++) {
            const struct entry *entry = &ENTRIES[i];
            struct slice name = slice_str(entry->path);
            bool matches = entry->is_prefix ? is_below(rest, name) : slice_eq(rest, name);
            if (!matches)
                continue;
            if (router_allows(&entry->route, method) || entry->route.kind == ROUTE_UNKNOWN_V1)
                return entry->route.kind == ROUTE_UNKNOWN_V1 && other_method ? other_method
                                                                             : &entry->route;
            if (!other_method)
                other_method = &entry->route;
        }
        return other_method ? other_method : &NONE;
    }
    if (slice_is(path, "/"))
        return method == HTTP1_HEAD ? &HELLO : &NONE;
    // Claude Code asks under its base path: HEAD {base}/api/hello or HEAD {base}/.
    if (slice_is(path, "/api/hello") || slice_is(path, "/anthropic/api/hello") ||
        (method == HTTP1_HEAD && (slice_is(path, "/anthropic") || slice_is(path, "/anthropic/"))))
        return &HELLO;
    if (is_below(path, SLICE_LIT("/control")))
        return &CONTROL;
    return &NONE;
}

bool router_allows(const struct route *route, enum http1_method method)
{
    return (route->methods & 1u << method) != 0;
}

enum dialect_id router_error_dialect(struct slice path, struct slice prefix,
                                     bool has_anthropic_version)
{
    bool is_anthropic = false;
    struct slice rest = strip_mount(path, prefix, &is_anthropic);
    if (is_anthropic || is_below(rest, SLICE_LIT("/v1/messages")))
        return DIALECT_ANTHROPIC;
    if (is_below(rest, SLICE_LIT("/v1/responses")))
        return DIALECT_RESPONSES;
    if (is_below(rest, SLICE_LIT("/v1/models")) && has_anthropic_version)
        return DIALECT_ANTHROPIC;
    if (is_below(rest, SLICE_LIT("/v1")))
        return DIALECT_OPENAI;
    return DIALECT_NONE;
}

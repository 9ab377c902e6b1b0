#pragma once
// URLs of upstreams and plugin fetches: parsed strictly (http or https only, a host, no userinfo,
// no fragment), and the address rules against SSRF (PROMISES T5). Pure; any thread.
#include "base/arena.h"
#include "base/err.h"
#include "base/slice.h"
#include <netinet/in.h>
#include <stdint.h>

struct url {
    bool is_tls;
    struct slice host;  // lower case; IPv6 without brackets
    uint16_t port;      // default filled in
    bool has_port;      // it was written
    struct slice path;  // starts with '/', "/" when absent; percent-encoding untouched
    struct slice query; // without '?'; ptr NULL when absent
};

// Parses; strings live in the arena. *why gets a constant text for the error message.
GW_MUSTCHECK int url_parse(struct slice text, struct arena *arena, struct url *url,
                           const char **why);
// "https://api.x.com/v1/" + "/v1/chat/completions" + "beta=true" → one URL. base works with and
// without a trailing "/v1" when path starts with "/v1/". The base's own query is kept first.
GW_MUSTCHECK int url_join(struct slice base, struct slice path, struct slice query,
                          struct arena *arena, struct slice *out);

// True for addresses a user-supplied URL may not reach: loopback, private, link-local, CGNAT,
// multicast, unspecified, reserved, their v4-mapped/compatible, NAT64, 6to4 and Teredo forms.
bool url_address_is_private(const struct sockaddr *address);
// Ports of mail, databases, ssh and the like that user-supplied URLs may not name.
bool url_port_is_denied(uint16_t port);
// A list entry "host", "host:port", "10.0.0.0/8", "10.0.0.0/8:8080", "[fd00::]/8".
GW_MUSTCHECK int url_rule_check(struct slice rule); // GW_EINVAL: not one of these forms
bool url_rule_matches(struct slice rule, struct slice host, uint16_t port,
                      const struct sockaddr *address);

// Percent-decodes one path segment or query value into out ('+' stays unless is_form).
GW_MUSTCHECK int url_decode(struct slice text, bool is_form, struct arena *arena,
                            struct slice *out);
// Percent-encodes all but RFC 3986 unreserved.
struct slice url_encode(struct slice text, struct arena *arena);
// Walks "a=1&b=2": false at the end. Raw (not decoded) names and values.
bool url_query_next(struct slice *query, struct slice *name, struct slice *value);

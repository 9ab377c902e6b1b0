// Rules for a complete head that llhttp does not hold (PROMISES §0): each line is something it
// accepts and we refuse, because two readers of the same bytes could disagree about them.
#include "io/http1_internal.h"

static bool is_host_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_' || c == '~';
}

static bool is_hex_colon(char c)
{
    return (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') || (c >= '0' && c <= '9') || c == ':' ||
           c == '.';
}

// host[:port]: a name, an IPv4 address or [IPv6]; no userinfo, no percent-encoding, no list.
static bool is_host(struct slice text)
{
    if (text.len == 0 || text.len > 261)
        return false;
    size_t at = 0;
    if (text.ptr[0] == '[') {
        for (at = 1; at < text.len && is_hex_colon(text.ptr[at]); at++)
            continue;
        if (at < 3 || at >= text.len || text.ptr[at] != ']')
            return false;
        at++;
    } else {
        while (at < text.len && is_host_byte(text.ptr[at]))
            at++;
        if (at == 0)
            return false;
    }
    if (at == text.len)
        return true;
    if (text.ptr[at] != ':')
        return false;
    unsigned long long port;
    struct slice digits = slice_from(text, at + 1);
    return digits.len > 0 && digits.len <= 5 && slice_to_u64(digits, 65535, &port) == 0;
}

// llhttp has checked most of it; a second look costs little and does not depend on its version.
static bool is_target(struct slice target, enum http1_method method)
{
    if (slice_is(target, "*"))
        return method == HTTP1_OPTIONS;
    if (target.len == 0 || target.ptr[0] != '/')
        return false; // absolute-form names a host of its own
    for (size_t i = 0; i < target.len; i++) {
        unsigned char c = (unsigned char)target.ptr[i];
        if (c <= 0x20 || c >= 0x7f || c == '#')
            return false;
    }
    return true;
}

// A comma list that holds the token.
static bool has_token(struct slice list, const char *token)
{
    size_t start = 0;
    for (size_t i = 0; i <= list.len; i++) {
        if (i < list.len && list.ptr[i] != ',')
            continue;
        if (slice_is_nocase(slice_trim(slice_of(list.ptr + start, i - start)), token))
            return true;
        start = i + 1;
    }
    return false;
}

int http1_check_head(struct http1_parser *parser, struct http1_request *request,
                     bool *expects_continue)
{
    struct slice host = SLICE_NONE, coding = SLICE_NONE, upgrade = SLICE_NONE;
    size_t hosts = 0, codings = 0, lengths = 0, bearers = 0, keys = 0, api_keys = 0;
    bool connection_upgrade = false;
    *expects_continue = false;
    if (!is_target(request->target, request->method))
        return http1_parser_refuse(parser, 400, "malformed request target");
    for (size_t i = 0; i < request->header_count; i++) {
        struct slice name = request->headers[i].name, value = request->headers[i].value;
        switch (name.len) {
        case 4:
            if (slice_is(name, "host")) {
                host = value;
                hosts++;
            }
            break;
        case 6:
            if (slice_is(name, "expect")) {
                if (!slice_is_nocase(value, "100-continue"))
                    return http1_parser_refuse(parser, 417, "expectation not supported");
                *expects_continue = !request->is_http10;
            }
            break;
        case 7:
            if (slice_is(name, "upgrade"))
                upgrade = value;
            else if (slice_is(name, "api-key"))
                api_keys++;
            break;
        case 9: keys += slice_is(name, "x-api-key"); break;
        case 10:
            if (slice_is(name, "connection") && has_token(value, "upgrade"))
                connection_upgrade = true;
            break;
        case 13: bearers += slice_is(name, "authorization"); break;
        case 14: lengths += slice_is(name, "content-length"); break;
        case 17:
            if (slice_is(name, "transfer-encoding")) {
                coding = value;
                codings++;
            }
            break;
        default: break;
        }
    }
    if (hosts > 1 || (hosts == 0 && !request->is_http10))
        return http1_parser_refuse(parser, 400, "exactly one Host header is required");
    if (hosts == 1 && !is_host(host))
        return http1_parser_refuse(parser, 400, "malformed Host header");
    if (codings > 0) {
        if (request->is_http10)
            return http1_parser_refuse(parser, 400, "Transfer-Encoding in HTTP/1.0");
        if (lengths > 0)
            return http1_parser_refuse(parser, 400, "both Content-Length and Transfer-Encoding");
        if (codings > 1 || !slice_is_nocase(coding, "chunked"))
            return http1_parser_refuse(parser, 400, "only Transfer-Encoding: chunked is accepted");
    }
    if (lengths > 1)
        return http1_parser_refuse(parser, 400, "more than one Content-Length");
    if (bearers > 1 || keys > 1 || api_keys > 1)
        return http1_parser_refuse(parser, 400, "more than one credential of a kind");
    request->is_websocket_upgrade = connection_upgrade && upgrade.ptr && !request->has_body &&
                                    request->method == HTTP1_GET && has_token(upgrade, "websocket");
    return 0;
}

// A request on its way in and out: checked and copied into the fetch's arena at fetch_start, and
// its body handed to the transport in parts.
#include "io/transport.h"

#include <stdio.h>
#include <string.h>

#define MAX_REQUEST_HEADERS 256
#define MAX_REQUEST_HEADER_BYTES (64 * 1024)

static bool is_token(struct slice text)
{
    for (size_t i = 0; i < text.len; i++) {
        if (!fetch_is_token_char((unsigned char)text.ptr[i]))
            return false;
    }
    return text.len > 0;
}

// Headers that belong to one connection, and those that the transport writes itself.
static bool is_own_header(struct slice name)
{
    switch (name.len) {
    case 2: return slice_is_nocase(name, "te");
    case 6: return slice_is_nocase(name, "expect");
    case 7: return slice_is_nocase(name, "trailer") || slice_is_nocase(name, "upgrade");
    case 10: return slice_is_nocase(name, "connection") || slice_is_nocase(name, "keep-alive");
    case 14:
        return slice_is_nocase(name, "content-length") || slice_is_nocase(name, "http2-settings");
    case 15: return slice_is_nocase(name, "accept-encoding");
    case 16: return slice_is_nocase(name, "proxy-connection");
    case 17: return slice_is_nocase(name, "transfer-encoding");
    case 18: return slice_is_nocase(name, "proxy-authenticate");
    case 19: return slice_is_nocase(name, "proxy-authorization");
    default: return false;
    }
}

static struct slice put_text(char **at, struct slice text)
{
    struct slice copy = slice_of(*at, text.len);
    if (text.len > 0)
        memcpy(*at, text.ptr, text.len);
    *at += text.len;
    return copy;
}

static int copy_headers(struct fetch *fetch, const struct fetch_request *request)
{
    if (request->header_count > MAX_REQUEST_HEADERS)
        return GW_ETOOBIG;
    size_t total = 0, size = (request->header_count + 1) * sizeof(struct http1_header);
    for (size_t i = 0; i < request->header_count; i++)
        total += request->headers[i].name.len + request->headers[i].value.len;
    if (total > MAX_REQUEST_HEADER_BYTES)
        return GW_ETOOBIG;
    struct http1_header *headers = arena_alloc(fetch->arena, size + total);
    if (headers == NULL)
        return GW_ENOMEM;
    char *text = (char *)headers + size;
    for (size_t i = 0; i < request->header_count; i++) {
        struct slice name = request->headers[i].name, value = slice_trim(request->headers[i].value);
        if (!is_token(name))
            return GW_EINVAL;
        for (size_t at = 0; at < value.len; at++) {
            unsigned char c = (unsigned char)value.ptr[at];
            if ((c < 0x20 && c != '\t') || c == 0x7f)
                return GW_EINVAL;
        }
        // A host of its own is for the operator's upstreams only: it chooses another tenant there.
        if (is_own_header(name) ||
            (slice_is_nocase(name, "host") && request->trust != FETCH_OPERATOR))
            continue;
        fetch->has_accept |= slice_is_nocase(name, "accept");
        fetch->has_content_type |= slice_is_nocase(name, "content-type");
        struct http1_header *header = &headers[fetch->header_count++];
        header->name = put_text(&text, name);
        header->value = put_text(&text, value);
    }
    fetch->headers = headers;
    return 0;
}

static int copy_body(struct fetch *fetch, const struct fetch_request *request)
{
    if (request->is_streamed) {
        fetch->is_streamed = fetch->has_body = true;
        fetch->body_length = request->body_length < 0 ? -1 : request->body_length;
        return request->body_count ? GW_EINVAL : 0;
    }
    struct slice *body = arena_alloc(fetch->arena, (request->body_count + 1) * sizeof *body);
    if (body == NULL)
        return GW_ENOMEM;
    for (size_t i = 0; i < request->body_count; i++) {
        body[i] = request->body[i];
        if (__builtin_add_overflow(fetch->body_length, (int64_t)body[i].len, &fetch->body_length))
            return GW_ETOOBIG;
    }
    fetch->body = body;
    fetch->body_count = request->body_count;
    // These announce their body even when it is empty.
    fetch->has_body = fetch->body_length > 0 || slice_is(request->method, "POST") ||
                      slice_is(request->method, "PUT") || slice_is(request->method, "PATCH");
    return 0;
}

static int copy_url(struct fetch *fetch, struct slice text)
{
    const char *why;
    int err = url_parse(text, fetch->arena, &fetch->url, &why);
    if (err)
        return err == GW_ENOMEM ? err : GW_EINVAL;
    fetch->dial_host = fetch->url.host;
    fetch->dial_port = fetch->url.port;
    return 0;
}

struct slice fetch_url_text(struct fetch *fetch)
{
    const struct url *url = &fetch->url;
    bool is_v6 = memchr(url->host.ptr, ':', url->host.len) != NULL;
    char port[8] = "";
    if (url->port != (url->is_tls ? 443 : 80))
        snprintf(port, sizeof port, ":%u", url->port);
    return arena_printf(
        fetch->arena, "%s%s%.*s%s%s%.*s%s%.*s", url->is_tls ? "https://" : "http://",
        is_v6 ? "[" : "", SLICE_FMT(url->host), is_v6 ? "]" : "", port, SLICE_FMT(url->path),
        url->query.ptr ? "?" : "", (int)url->query.len, url->query.ptr ? url->query.ptr : "");
}

// "http://[user:password@]host[:port][/]"
static int copy_proxy(struct fetch *fetch, const char *text)
{
    if (text == NULL || *text == '\0')
        return 0;
    struct slice proxy = slice_str(text);
    if (!slice_starts(proxy, "http://"))
        return GW_EINVAL;
    struct slice rest = slice_from(proxy, 7);
    const char *at = memrchr(rest.ptr, '@', rest.len);
    if (at != NULL)
        rest = slice_from(rest, (size_t)(at - rest.ptr) + 1);
    struct slice plain = arena_printf(fetch->arena, "http://%.*s", SLICE_FMT(rest));
    struct url url;
    const char *why;
    if (plain.ptr == NULL)
        return GW_ENOMEM;
    if (url_parse(plain, fetch->arena, &url, &why) || url.query.ptr != NULL || url.path.len != 1)
        return GW_EINVAL;
    fetch->proxy = arena_copyz(fetch->arena, proxy);
    fetch->dial_host = url.host;
    fetch->dial_port = url.port;
    if (!url.has_port)
        return GW_EINVAL; // libcurl's default for proxies is 1080: say it
    return fetch->proxy ? 0 : GW_ENOMEM;
}

static int copy_rules(struct fetch *fetch, const struct fetch_request *request)
{
    fetch->check_address = request->check_address || request->trust != FETCH_OPERATOR;
    if (!fetch->check_address || request->allowed_private_count == 0)
        return 0;
    struct slice *rules = arena_alloc(fetch->arena, request->allowed_private_count * sizeof *rules);
    if (rules == NULL)
        return GW_ENOMEM;
    for (size_t i = 0; i < request->allowed_private_count; i++) {
        rules[i] = arena_copy(fetch->arena, request->allowed_private[i]);
        if (rules[i].ptr == NULL)
            return GW_ENOMEM;
    }
    fetch->allowed_private = rules;
    fetch->allowed_private_count = request->allowed_private_count;
    return 0;
}

int fetch_copy_request(struct fetch *fetch, const struct fetch_request *request)
{
    if (!is_token(request->method) || request->method.len > 16)
        return GW_EINVAL;
    fetch->method = arena_copyz(fetch->arena, request->method);
    if (fetch->method == NULL)
        return GW_ENOMEM;
    if (request->ca_file != NULL &&
        (fetch->ca_file = arena_copyz(fetch->arena, slice_str(request->ca_file))) == NULL)
        return GW_ENOMEM;
    fetch->trust = request->trust;
    fetch->trust_id = request->trust == FETCH_OPERATOR ? 0 : request->trust_id;
    fetch->timers = request->timers;
    fetch->max_body_bytes = request->max_body_bytes;
    fetch_head_init(&fetch->head, request->max_header_bytes);
    int err = copy_url(fetch, request->url);
    if (err == 0)
        err = copy_proxy(fetch, request->proxy);
    if (err == 0)
        err = copy_headers(fetch, request);
    if (err == 0)
        err = copy_body(fetch, request);
    if (err == 0)
        err = copy_rules(fetch, request);
    if (err == 0 && fetch->has_body &&
        (slice_is(request->method, "HEAD") || slice_is(request->method, "CONNECT") ||
         slice_is(request->method, "TRACE")))
        err = GW_EINVAL;
    return err;
}

// ---- the body

static long read_pieces(struct fetch *fetch, char *out, size_t size)
{
    size_t filled = 0;
    while (filled < size && fetch->body_index < fetch->body_count) {
        struct slice left = slice_from(fetch->body[fetch->body_index], fetch->body_offset);
        size_t len = left.len < size - filled ? left.len : size - filled;
        if (len)
            memcpy(out + filled, left.ptr, len);
        filled += len;
        fetch->body_offset += len;
        if (len == left.len) {
            fetch->body_index++;
            fetch->body_offset = 0;
        }
    }
    return (long)filled;
}

struct slice fetch_take_body(struct fetch *fetch, size_t max)
{
    if (fetch->whole_body.ptr != NULL)
        return fetch->whole_body; // a second start
    if (fetch->is_streamed || fetch->body_length > (int64_t)max)
        return SLICE_NONE;
    char *bytes = arena_alloc(fetch->arena, (size_t)fetch->body_length + 1);
    if (bytes == NULL)
        return SLICE_NONE;
    long len = read_pieces(fetch, bytes, (size_t)fetch->body_length);
    fetch->body_sent = (uint64_t)len;
    return fetch->whole_body = slice_of(bytes, (size_t)len);
}

static long read_upload(struct fetch *fetch, char *out, size_t size)
{
    size_t len = fetch->upload.len < size ? fetch->upload.len : size;
    if (len == 0) {
        if (!fetch->is_ended) {
            fetch->is_upload_waiting = true;
            return FETCH_READ_WAIT;
        }
        if (fetch->body_length >= 0 && fetch->body_sent < (uint64_t)fetch->body_length) {
            fetch_note(fetch, GW_EINVAL, "the request body is shorter than announced");
            return FETCH_READ_STOP;
        }
        return 0;
    }
    memcpy(out, fetch->upload.mem + fetch->upload.off, len);
    buf_consume(&fetch->upload, len);
    if (fetch->upload.len == 0)
        buf_shrink(&fetch->upload);
    if (fetch->wants_writable && fetch->upload.len < FETCH_UPLOAD_LOW) {
        fetch->wants_writable = false;
        if (fetch->handler.on_writable)
            fetch->handler.on_writable(fetch->user);
    }
    return (long)len;
}

long fetch_read_body(struct fetch *fetch, char *out, size_t size)
{
    if (fetch->is_dead)
        return FETCH_READ_STOP;
    long len = fetch->is_streamed ? read_upload(fetch, out, size) : read_pieces(fetch, out, size);
    if (fetch->is_dead)
        return FETCH_READ_STOP;
    if (len >= 0)
        fetch_on_sent(fetch, (size_t)len);
    return len;
}

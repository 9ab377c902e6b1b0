// The incremental request parser: llhttp with its lenient flags off, and our own counting before
// anything is stored. It knows no sockets, so the fuzz target drives it alone. Pauses instead of
// callbacks: the caller sees one event at a time and may stop between any two.
#include "io/http1_internal.h"

#include <string.h>

// Framing (sizes, extensions, trailers) may not outweigh the body by more than this.
#define OVERHEAD_BASE 65536u
#define OVERHEAD_FACTOR 16u
#define TEXT_FIRST 1024u
#define FIELDS_FIRST 16u

struct http1_field {
    uint32_t name, name_len, value, value_len;
};

static struct http1_parser *parser_of(llhttp_t *llhttp)
{
    return llhttp->data;
}

int http1_parser_refuse(struct http1_parser *parser, int status, const char *message)
{
    if (!parser->status) { // the first reason stands
        parser->status = status;
        parser->message = message;
    }
    return HPE_USER;
}

enum http1_method http1_method_of(uint8_t llhttp_method)
{
    switch (llhttp_method) {
    case HTTP_GET: return HTTP1_GET;
    case HTTP_HEAD: return HTTP1_HEAD;
    case HTTP_POST: return HTTP1_POST;
    case HTTP_PUT: return HTTP1_PUT;
    case HTTP_DELETE: return HTTP1_DELETE;
    case HTTP_PATCH: return HTTP1_PATCH;
    case HTTP_OPTIONS: return HTTP1_OPTIONS;
    default: return HTTP1_OTHER;
    }
}

static uint64_t place_of(const struct http1_parser *parser, const char *at)
{
    return parser->fed + (uint64_t)(at - parser->feed);
}

static int store(struct http1_parser *parser, const char *at, size_t len)
{
    size_t need = parser->text_len + len;
    if (need > parser->text_size) {
        size_t size = parser->text_size ? parser->text_size : TEXT_FIRST;
        while (size < need)
            size *= 2;
        char *text = arena_alloc(parser->arena, size);
        if (!text)
            return http1_parser_refuse(parser, 503, "out of memory");
        if (parser->text_len)
            memcpy(text, parser->text, parser->text_len);
        parser->text = text;
        parser->text_size = (uint32_t)size;
    }
    memcpy(parser->text + parser->text_len, at, len);
    parser->text_len = (uint32_t)need;
    return 0;
}

// The header block counts from the end of the request line, spaces included.
static int check_block(struct http1_parser *parser, uint64_t end)
{
    uint64_t line_end = parser->target_end + sizeof(" HTTP/1.1\r\n") - 1;
    if (end > line_end && end - line_end > parser->limits->header_bytes)
        return http1_parser_refuse(parser, 431, "header block too large");
    return 0;
}

static int on_method(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http1_parser *parser = parser_of(llhttp);
    parser->method_end = place_of(parser, at + len);
    return 0;
}

static int on_method_complete(llhttp_t *llhttp)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (llhttp->method == HTTP_PRI)
        return http1_parser_refuse(parser, 505, "HTTP/2 is not spoken here");
    if (http1_method_of(llhttp->method) == HTTP1_OTHER)
        return http1_parser_refuse(parser, 501, "method not implemented");
    return 0;
}

static int on_url(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (parser->target_len == 0 && place_of(parser, at) != parser->method_end + 1u)
        return http1_parser_refuse(parser, 400, "malformed request line");
    if (len > parser->limits->target_bytes - parser->target_len)
        return http1_parser_refuse(parser, 414, "request target too long");
    parser->target_len += (uint32_t)len;
    parser->target_end = place_of(parser, at + len);
    return store(parser, at, len);
}

static int on_url_complete(llhttp_t *llhttp)
{
    struct http1_parser *parser = parser_of(llhttp);
    parser->is_target_known = true;
    // HTTP/0.9 has no version to call back for: llhttp sets it when the line ends here.
    if (llhttp->http_minor == 9)
        return http1_parser_refuse(parser, 505, "HTTP version not supported");
    return 0;
}

// llhttp also takes RTSP and ICE here, and any number of spaces.
static int on_version(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (parser->version_bytes == 0) {
        char name[5];
        size_t before = (size_t)(at - parser->feed);
        for (size_t i = 0; i < sizeof name; i++) {
            size_t back = sizeof name - i; // bytes before `at`
            name[i] = back <= before ? at[-(ptrdiff_t)back]
                                     : parser->tail[sizeof parser->tail - (back - before)];
        }
        if (memcmp(name, "HTTP/", sizeof name) != 0 ||
            place_of(parser, at) != parser->target_end + 1u + sizeof name)
            return http1_parser_refuse(parser, 400, "malformed request line");
    }
    if (len <= 8u - parser->version_bytes)
        parser->version_bytes += (uint8_t)len;
    return 0;
}

static int on_version_complete(llhttp_t *llhttp)
{
    struct http1_parser *parser = parser_of(llhttp);
    parser->is_version_known = true;
    if (llhttp->http_major != 1 || llhttp->http_minor > 1)
        return http1_parser_refuse(parser, 505, "HTTP version not supported");
    return 0;
}

static int count_trailer(struct http1_parser *parser, size_t len)
{
    if (len > parser->limits->header_bytes - parser->trailer_bytes)
        return http1_parser_refuse(parser, 431, "trailers too large");
    parser->trailer_bytes += (uint32_t)len;
    return 0;
}

static int on_header_field(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (parser->is_in_body)
        return count_trailer(parser, len); // dropped
    if (check_block(parser, place_of(parser, at + len)))
        return HPE_USER;
    if (!parser->is_in_field) {
        if (parser->seen_fields >= parser->limits->header_count)
            return http1_parser_refuse(parser, 431, "too many header fields");
        if (parser->field_count == parser->field_size) {
            uint32_t size = parser->field_size ? parser->field_size * 2u : FIELDS_FIRST;
            struct http1_field *fields = arena_alloc(parser->arena, size * sizeof *fields);
            if (!fields)
                return http1_parser_refuse(parser, 503, "out of memory");
            if (parser->field_count)
                memcpy(fields, parser->fields, parser->field_count * sizeof *fields);
            parser->fields = fields;
            parser->field_size = size;
        }
        parser->fields[parser->field_count] =
            (struct http1_field){.name = parser->text_len, .name_len = 0};
        parser->seen_fields++;
        parser->is_in_field = true;
    }
    parser->fields[parser->field_count].name_len += (uint32_t)len;
    return store(parser, at, len);
}

static int on_header_field_complete(llhttp_t *llhttp)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (parser->is_in_body || !parser->is_in_field)
        return 0;
    struct http1_field *field = &parser->fields[parser->field_count];
    for (uint32_t i = 0; i < field->name_len; i++) {
        char *byte = &parser->text[field->name + i];
        if (*byte >= 'A' && *byte <= 'Z')
            *byte = (char)(*byte - 'A' + 'a');
    }
    field->value = parser->text_len;
    field->value_len = 0;
    return 0;
}

static int on_header_value(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (parser->is_in_body)
        return count_trailer(parser, len);
    if (!parser->is_in_field || check_block(parser, place_of(parser, at + len)))
        return HPE_USER;
    parser->fields[parser->field_count].value_len += (uint32_t)len;
    return store(parser, at, len);
}

static int on_header_value_complete(llhttp_t *llhttp)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (parser->is_in_body || !parser->is_in_field)
        return 0;
    struct http1_field *field = &parser->fields[parser->field_count];
    parser->is_in_field = false;
    // CGI-like backends cannot tell x_y from x-y, so such a name could stand in for another.
    if (memchr(parser->text + field->name, '_', field->name_len))
        parser->text_len = field->name;
    else
        parser->field_count++;
    return 0;
}

static int on_headers_complete(llhttp_t *llhttp)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (!parser->is_version_known)
        return http1_parser_refuse(parser, 505, "HTTP version not supported");
    llhttp->upgrade = 0; // we never switch protocols: the body rules stay those of HTTP/1.1
    parser->pause = HTTP1_PARSED_HEAD;
    return HPE_PAUSED;
}

static int on_body(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http1_parser *parser = parser_of(llhttp);
    if (len == 0)
        return 0;
    uint64_t overhead = place_of(parser, at) - parser->body_bytes;
    if (overhead > OVERHEAD_BASE + OVERHEAD_FACTOR * parser->body_bytes)
        return http1_parser_refuse(parser, 400, "too much chunk framing");
    if (len > parser->body_limit || parser->body_bytes > parser->body_limit - len)
        return http1_parser_refuse(parser, 413, "request body too large");
    parser->body_bytes += len;
    if (parser->on_body(parser->user, slice_of(at, len)))
        return 0;
    parser->pause = HTTP1_PARSED_STOPPED;
    parser->may_continue = true;
    return HPE_PAUSED;
}

static int on_chunk_header(llhttp_t *llhttp)
{
    struct http1_parser *parser = parser_of(llhttp);
    parser->extension_bytes = 0;
    if (parser->body_bytes > parser->body_limit ||
        llhttp->content_length > parser->body_limit - parser->body_bytes)
        return http1_parser_refuse(parser, 413, "request body too large");
    return 0;
}

static int count_extension(struct http1_parser *parser, size_t len)
{
    const struct http1_limits *limits = parser->limits;
    if (len > limits->chunk_extension_bytes - parser->extension_bytes ||
        len > limits->chunk_extension_total_bytes - parser->extension_total)
        return http1_parser_refuse(parser, 400, "chunk extensions too large");
    parser->extension_bytes += (uint32_t)len;
    parser->extension_total += (uint32_t)len;
    return 0;
}

static int on_chunk_extension(llhttp_t *llhttp, const char *at, size_t len)
{
    (void)at;
    return count_extension(parser_of(llhttp), len);
}

static int on_chunk_extension_complete(llhttp_t *llhttp)
{
    return count_extension(parser_of(llhttp), 1); // the separator
}

static int on_message_complete(llhttp_t *llhttp)
{
    parser_of(llhttp)->pause = HTTP1_PARSED_COMPLETE;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_method = on_method,
    .on_method_complete = on_method_complete,
    .on_url = on_url,
    .on_url_complete = on_url_complete,
    .on_version = on_version,
    .on_version_complete = on_version_complete,
    .on_header_field = on_header_field,
    .on_header_field_complete = on_header_field_complete,
    .on_header_value = on_header_value,
    .on_header_value_complete = on_header_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_chunk_header = on_chunk_header,
    .on_chunk_extension_name = on_chunk_extension,
    .on_chunk_extension_name_complete = on_chunk_extension_complete,
    .on_chunk_extension_value = on_chunk_extension,
    .on_chunk_extension_value_complete = on_chunk_extension_complete,
    .on_message_complete = on_message_complete,
};

void http1_parser_start(struct http1_parser *parser, const struct http1_limits *limits,
                        struct arena *arena, bool (*on_body_bytes)(void *user, struct slice bytes),
                        void *user)
{
    memset(parser, 0, sizeof *parser);
    llhttp_init(&parser->llhttp, HTTP_REQUEST, &settings);
    parser->llhttp.data = parser;
    parser->limits = limits;
    parser->arena = arena;
    parser->on_body = on_body_bytes;
    parser->user = user;
    parser->body_limit = limits->body_bytes;
}

void http1_parser_partial(struct http1_parser *parser, struct http1_request *request)
{
    request->method = parser->method_end ? http1_method_of(parser->llhttp.method) : HTTP1_OTHER;
    request->method_text =
        request->method == HTTP1_OTHER
            ? SLICE_LIT("")
            : slice_str(llhttp_method_name((llhttp_method_t)parser->llhttp.method));
    size_t len = parser->is_target_known ? parser->target_len : 0;
    request->target = slice_of(len ? parser->text : "", len);
    const char *mark = len ? memchr(parser->text, '?', len) : NULL;
    size_t path_len = mark ? (size_t)(mark - parser->text) : len;
    request->path = slice_of(request->target.ptr, path_len);
    request->query = mark ? slice_of(mark + 1, len - path_len - 1) : SLICE_NONE;
}

static int fill_request(struct http1_parser *parser, struct http1_request *request)
{
    const llhttp_t *llhttp = &parser->llhttp;
    http1_parser_partial(parser, request);
    struct http1_header *headers =
        arena_alloc(parser->arena, (parser->field_count + 1u) * sizeof *headers);
    if (!headers)
        return http1_parser_refuse(parser, 503, "out of memory");
    for (uint32_t i = 0; i < parser->field_count; i++) {
        const struct http1_field *field = &parser->fields[i];
        headers[i].name = slice_of(parser->text + field->name, field->name_len);
        headers[i].value = slice_trim(slice_of(parser->text + field->value, field->value_len));
    }
    request->headers = headers;
    request->header_count = parser->field_count;
    request->is_http10 = llhttp->http_minor == 0;
    request->is_keep_alive = request->is_http10 ? (llhttp->flags & F_CONNECTION_KEEP_ALIVE) &&
                                                      !(llhttp->flags & F_CONNECTION_CLOSE)
                                                : !(llhttp->flags & F_CONNECTION_CLOSE);
    if (llhttp->flags & F_CHUNKED) {
        request->content_length = -1;
    } else {
        uint64_t length = llhttp->flags & F_CONTENT_LENGTH ? llhttp->content_length : 0;
        if (length > parser->body_limit || length > INT64_MAX)
            return http1_parser_refuse(parser, 413, "request body too large");
        request->content_length = (int64_t)length;
    }
    request->has_body = request->content_length != 0;
    return 0;
}

// After the bytes at hand: limits that no callback saw (spaces, zeros before a chunk size).
static void check_rest(struct http1_parser *parser)
{
    const struct http1_limits *limits = parser->limits;
    if (parser->is_in_body) {
        uint64_t overhead = parser->fed - parser->body_bytes;
        if (overhead > OVERHEAD_BASE + OVERHEAD_FACTOR * parser->body_bytes)
            http1_parser_refuse(parser, 400, "too much chunk framing");
    } else if (parser->is_target_known) {
        check_block(parser, parser->fed);
    } else if (parser->fed > (uint64_t)limits->target_bytes + 64u) {
        http1_parser_refuse(parser, 400, "malformed request line");
    }
}

static void map_error(struct http1_parser *parser, llhttp_errno_t err)
{
    if (err == HPE_INVALID_METHOD && parser->first_byte >= 'A' && parser->first_byte <= 'Z')
        http1_parser_refuse(parser, 501, "method not implemented");
    else if (err == HPE_INVALID_VERSION && parser->version_bytes == 3 && !parser->is_version_known)
        http1_parser_refuse(parser, 505, "HTTP version not supported");
    else if (parser->is_in_body)
        http1_parser_refuse(parser, 400, "malformed request body");
    else
        http1_parser_refuse(parser, 400, "malformed request");
}

// Two empty lines before the request line are let pass (RFC 9112 2.2); llhttp would take any
// number of bare CR and LF.
static size_t skip_blank(struct http1_parser *parser, const char *data, size_t len)
{
    size_t used = 0;
    while (used < len && !parser->is_started && !parser->status) {
        bool wants_lf = parser->blank_bytes % 2u == 1u;
        if (data[used] == (wants_lf ? '\n' : '\r') && parser->blank_bytes < 4) {
            parser->blank_bytes++;
            used++;
        } else if (wants_lf || data[used] == '\r' || data[used] == '\n') {
            http1_parser_refuse(parser, 400, "malformed request line");
        } else {
            parser->is_started = true;
            parser->first_byte = (uint8_t)data[used];
        }
    }
    return used;
}

static void keep_tail(struct http1_parser *parser, const char *data, size_t len)
{
    size_t size = sizeof parser->tail;
    if (len >= size) {
        memcpy(parser->tail, data + len - size, size);
    } else {
        memmove(parser->tail, parser->tail + len, size - len);
        memcpy(parser->tail + size - len, data, len);
    }
}

enum http1_parsed http1_parser_feed(struct http1_parser *parser, const char *data, size_t len,
                                    size_t *used, struct http1_request *request)
{
    size_t skipped = parser->is_started ? 0 : skip_blank(parser, data, len);
    *used = skipped;
    if (parser->status)
        return HTTP1_PARSED_REFUSED;
    if (skipped == len && !parser->is_in_body)
        return HTTP1_PARSED_MORE;
    data += skipped;
    len -= skipped;
    parser->feed = data;
    parser->may_continue = false;
    llhttp_errno_t err = llhttp_execute(&parser->llhttp, data, len);
    size_t done = len;
    if (err == HPE_PAUSED)
        done = (size_t)(llhttp_get_error_pos(&parser->llhttp) - data);
    else if (err != HPE_OK)
        map_error(parser, err);
    *used += done;
    parser->fed += done;
    if (!parser->status)
        check_rest(parser);
    if (parser->status)
        return HTTP1_PARSED_REFUSED;
    if (err == HPE_OK) {
        if (!parser->is_in_body)
            keep_tail(parser, data, done);
        return HTTP1_PARSED_MORE;
    }
    llhttp_resume(&parser->llhttp);
    if (parser->pause == HTTP1_PARSED_HEAD) {
        if (fill_request(parser, request))
            return HTTP1_PARSED_REFUSED;
        parser->is_in_body = true;
        parser->fed = 0;
    }
    return parser->pause;
}

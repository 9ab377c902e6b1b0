#include "io/transport_http1_answer.h"

// Framing (sizes, extensions, trailers) may not outweigh the body by more than this.
#define OVERHEAD_BASE 65536u
#define OVERHEAD_FACTOR 16u
#define EXTENSION_MAX 256u
#define EXTENSION_TOTAL_MAX 16384u

static int refuse(struct h1_answer *answer, int err, const char *why)
{
    if (answer->err == 0) { // the first reason stands
        answer->err = err;
        answer->why = why;
    }
    return HPE_USER;
}

// ---- what llhttp tells; the lines of the head go their own way

static int count_trailer(llhttp_t *llhttp, const char *at, size_t len)
{
    struct h1_answer *answer = llhttp->data;
    (void)at;
    if (answer->state == H1_ANSWER_HEAD)
        return 0;
    if (len > answer->max_bytes - answer->trailer_bytes)
        return refuse(answer, GW_ETOOBIG, "the answer's trailers are too big");
    answer->trailer_bytes += (uint32_t)len;
    return 0;
}

static int on_headers_complete(llhttp_t *llhttp)
{
    struct h1_answer *answer = llhttp->data;
    int status = llhttp->status_code;
    bool has_framing =
        (llhttp->flags & (F_CHUNKED | F_TRANSFER_ENCODING)) || llhttp->content_length > 0;
    llhttp->upgrade = 0;
    answer->has_said_close |= (llhttp->flags & F_CONNECTION_CLOSE) != 0;
    if (status < 200)
        return 0;
    if (answer->is_head_request)
        llhttp->flags |= F_SKIPBODY;
    answer->is_until_close = llhttp_message_needs_eof(llhttp);
    // What another reader could frame in another way is not followed by a second answer.
    answer->may_keep = llhttp->http_major == 1 && llhttp->http_minor == 1 &&
                       !answer->has_said_close && !answer->is_until_close &&
                       !(status == 204 && has_framing);
    return answer->is_head_request ? 1 : 0;
}

static int on_body(llhttp_t *llhttp, const char *at, size_t len)
{
    struct h1_answer *answer = llhttp->data;
    uint64_t overhead = answer->fed + (uint64_t)(at - answer->feed) - answer->body_bytes;
    if (overhead > OVERHEAD_BASE + OVERHEAD_FACTOR * answer->body_bytes)
        return refuse(answer, GW_EPROTO, "too much chunk framing");
    answer->body_bytes += len;
    if (answer->span == NULL)
        answer->span = (char *)at;
    else if (answer->span + answer->span_len != at)
        memmove(answer->span + answer->span_len, at, len);
    answer->span_len += len;
    return 0;
}

static int on_chunk_header(llhttp_t *llhttp)
{
    ((struct h1_answer *)llhttp->data)->extension_bytes = 0;
    return 0;
}

static int on_chunk_extension(llhttp_t *llhttp, const char *at, size_t len)
{
    struct h1_answer *answer = llhttp->data;
    (void)at;
    if (len > EXTENSION_MAX - answer->extension_bytes ||
        len > EXTENSION_TOTAL_MAX - answer->extension_total)
        return refuse(answer, GW_EPROTO, "chunk extensions too large");
    answer->extension_bytes += (uint32_t)len;
    answer->extension_total += (uint32_t)len;
    return 0;
}

static int on_chunk_extension_complete(llhttp_t *llhttp)
{
    return on_chunk_extension(llhttp, NULL, 1); // the separator
}

static int on_message_complete(llhttp_t *llhttp)
{
    (void)llhttp;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_header_field = count_trailer,
    .on_header_value = count_trailer,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_chunk_header = on_chunk_header,
    .on_chunk_extension_name = on_chunk_extension,
    .on_chunk_extension_name_complete = on_chunk_extension_complete,
    .on_chunk_extension_value = on_chunk_extension,
    .on_chunk_extension_value_complete = on_chunk_extension_complete,
    .on_message_complete = on_message_complete,
};

static void start_message(struct h1_answer *answer)
{
    llhttp_init(&answer->llhttp, HTTP_RESPONSE, &settings);
    answer->llhttp.data = answer;
}

void h1_answer_start(struct h1_answer *answer, bool is_head_request, uint32_t max_bytes,
                     int (*on_line)(void *user, struct slice line), void *user)
{
    memset(answer, 0, sizeof *answer);
    start_message(answer);
    answer->on_line = on_line;
    answer->user = user;
    answer->is_head_request = is_head_request;
    answer->max_bytes = max_bytes;
    buf_init(&answer->carry, max_bytes);
}

void h1_answer_free(struct h1_answer *answer)
{
    buf_free(&answer->carry);
}

static void fail(struct h1_answer *answer, int err, const char *why)
{
    refuse(answer, err, why);
    answer->state = H1_ANSWER_FAILED;
}

// ---- the head

static void read_line(struct h1_answer *answer, struct slice line)
{
    // Both readings stop at the same places, whatever else stands in the line.
    if (line.len < 2 || line.ptr[line.len - 2] != '\r' ||
        memchr(line.ptr, '\r', line.len - 2) != NULL || memchr(line.ptr, '\0', line.len) != NULL) {
        fail(answer, GW_EPROTO, "malformed line in the answer's head");
        return;
    }
    llhttp_errno_t err = llhttp_execute(&answer->llhttp, line.ptr, line.len);
    bool is_complete = err == HPE_PAUSED;
    bool is_refused = err != HPE_OK && !is_complete;
    if (is_complete && llhttp_get_error_pos(&answer->llhttp) != line.ptr + line.len)
        is_refused = true;
    int own = answer->on_line(answer->user, line);
    if (own) {
        fail(answer, own, NULL);
    } else if (is_refused || is_complete + (line.len > 2) > 1) {
        fail(answer, GW_EPROTO, "malformed head of the answer");
    } else if (line.len == 2 && answer->llhttp.status_code < 200) {
        if (!is_complete)
            fail(answer, GW_EPROTO, "malformed informational answer");
        else
            start_message(answer); // one that said `close` would end the parser's work
    } else if (line.len == 2) {
        answer->state = is_complete ? H1_ANSWER_DONE : H1_ANSWER_BODY;
        buf_free(&answer->carry);
    }
}

static size_t read_head(struct h1_answer *answer, const char *bytes, size_t len)
{
    size_t used = 0;
    while (used < len && answer->state == H1_ANSWER_HEAD) {
        const char *newline = memchr(bytes + used, '\n', len - used);
        size_t end = newline ? (size_t)(newline - bytes) + 1 : len;
        struct slice line = slice_of(bytes + used, end - used);
        used = end;
        if (newline == NULL || answer->carry.len > 0) {
            int err = buf_append(&answer->carry, line);
            if (err) {
                fail(answer, err, "the answer's head is too big");
                break;
            }
            line = buf_slice(&answer->carry);
        }
        if (newline != NULL) {
            read_line(answer, line);
            buf_clear(&answer->carry);
        }
    }
    return used;
}

// ---- the body

static size_t read_body(struct h1_answer *answer, const char *bytes, size_t len)
{
    answer->feed = bytes;
    llhttp_errno_t err = llhttp_execute(&answer->llhttp, bytes, len);
    size_t used = len;
    if (err == HPE_PAUSED) {
        used = (size_t)(llhttp_get_error_pos(&answer->llhttp) - bytes);
        answer->state = H1_ANSWER_DONE;
    } else if (err != HPE_OK) {
        fail(answer, GW_EPROTO, "malformed body of the answer");
    }
    answer->fed += used;
    if (answer->fed - answer->body_bytes > OVERHEAD_BASE + OVERHEAD_FACTOR * answer->body_bytes)
        fail(answer, GW_EPROTO, "too much chunk framing");
    return used;
}

struct slice h1_answer_feed(struct h1_answer *answer, char *bytes, size_t len)
{
    size_t used = 0;
    answer->span = NULL;
    answer->span_len = 0;
    if (answer->state == H1_ANSWER_HEAD)
        used = read_head(answer, bytes, len);
    if (answer->state == H1_ANSWER_BODY && used < len)
        used += read_body(answer, bytes + used, len - used);
    // Bytes beyond the end: the answer stands, but who knows whose they are.
    if (answer->state == H1_ANSWER_DONE && used < len)
        answer->may_keep = false;
    return slice_of(answer->span, answer->span_len);
}

void h1_answer_end(struct h1_answer *answer)
{
    if (answer->state == H1_ANSWER_BODY && answer->is_until_close)
        answer->state = H1_ANSWER_DONE;
    else if (answer->state == H1_ANSWER_HEAD)
        fail(answer, GW_ERESET, "the connection closed before an answer");
    else if (answer->state == H1_ANSWER_BODY)
        fail(answer, GW_ERESET, "the connection closed within the answer's body");
    answer->may_keep = false;
}

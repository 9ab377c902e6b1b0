// One exchange through libcurl: a pooled easy handle, its options and callbacks, and what its
// errors mean. Options that never change are set once per handle; each start sets all the others,
// so nothing of an earlier request stays.
//
// libcurl repeats a request by itself when a reused connection closed unanswered. on_request runs
// before each writing and refuses a second one, whatever the method and however the body is given.
// So a small body may be given as POSTFIELDS, which libcurl writes together with the head: a write
// and a wake-up of the upstream less, 5 to 6 µs of 19. Larger ones go through on_read, and on_seek
// refuses to rewind them.
#include "io/transport_curl.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define SPARE_MAX 64
#define SMALL_BODY_MAX (16 * 1024) // copied, and kept as long as the answer takes
#define USER_AGENT "moongate/" MOONGATE_VERSION

static void keep_ssl(struct transfer *transfer)
{
    struct curl_tlssessioninfo *info = NULL;
    if (curl_easy_getinfo(transfer->easy, CURLINFO_TLS_SSL_PTR, &info) == CURLE_OK &&
        info != NULL && info->backend == CURLSSLBACKEND_OPENSSL && info->internals != NULL &&
        SSL_up_ref(info->internals) == 1)
        transfer->ssl = info->internals;
}

// True for a body without a length whose connection ended without a word.
static bool is_cut(const struct transfer *transfer)
{
    const struct fetch *fetch = transfer->fetch;
    bool has_body = fetch->head.status != 204 && fetch->head.status != 304 &&
                    strcmp(fetch->method, "HEAD") != 0;
    return transfer->ssl != NULL && has_body && !transport_tls_was_closed(transfer->ssl);
}

static size_t on_header(char *data, size_t size, size_t count, void *user)
{
    struct transfer *transfer = user;
    struct fetch *fetch = transfer->fetch;
    size_t len = size * count;
    if (fetch_on_head_line(fetch, slice_of(data, len)))
        return 0;
    if (fetch->head.is_final && fetch->url.is_tls && !fetch->head.has_length &&
        !fetch->head.is_chunked && transfer->ssl == NULL)
        keep_ssl(transfer);
    return len;
}

static size_t on_write(char *data, size_t size, size_t count, void *user)
{
    struct transfer *transfer = user;
    size_t len = size * count;
    switch (fetch_on_bytes(transfer->fetch, slice_of(data, len))) {
    case FETCH_WENT_ON: return len;
    case FETCH_WENT_PAUSED: return CURL_WRITEFUNC_PAUSE;
    case FETCH_WENT_STOP: break;
    }
    return len ? 0 : 1; // anything but len ends the transfer
}

static size_t on_read(char *out, size_t size, size_t count, void *user)
{
    struct transfer *transfer = user;
    long len = fetch_read_body(transfer->fetch, out, size * count);
    if (len == FETCH_READ_WAIT)
        return CURL_READFUNC_PAUSE;
    return len < 0 ? CURL_READFUNC_ABORT : (size_t)len;
}

static int on_seek(void *user, curl_off_t offset, int origin)
{
    (void)user, (void)offset, (void)origin;
    return CURL_SEEKFUNC_FAIL;
}

// Called on every connection just before the request is written, after a silent retry as well.
static int on_request(void *user, char *peer_ip, char *local_ip, int peer_port, int local_port)
{
    struct transfer *transfer = user;
    (void)local_ip, (void)peer_port;
    if (transfer->request_count++ > 0) {
        fetch_note(transfer->fetch, GW_ERESET, "the connection closed before an answer");
        return CURL_PREREQFUNC_ABORT;
    }
    transfer->is_connecting = false;
    transfer_settle(transfer);
    if (sock_take(transfer, local_port)) {
        transfer->must_restart = true;
        return CURL_PREREQFUNC_ABORT;
    }
    return fetch_on_request(transfer->fetch, peer_ip, !transfer->has_opened) ? CURL_PREREQFUNC_ABORT
                                                                             : CURL_PREREQFUNC_OK;
}

static CURLcode on_ssl_context(CURL *easy, void *context, void *user)
{
    struct transfer *transfer = user;
    (void)easy;
    transport_tls_prepare(context, transfer->lane->origin->store);
    return CURLE_OK;
}

// ---- handles

static CURLcode set_constants(CURL *easy, struct transfer *transfer)
{
    CURLcode code = CURLE_OK;
#define SET(option, value)                                                                         \
    do {                                                                                           \
        if (code == CURLE_OK)                                                                      \
            code = curl_easy_setopt(easy, option, value);                                          \
    } while (0)
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_ERRORBUFFER, transfer->error);
    SET(CURLOPT_PRIVATE, transfer);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, transfer);
    SET(CURLOPT_WRITEFUNCTION, on_write);
    SET(CURLOPT_WRITEDATA, transfer);
    SET(CURLOPT_READFUNCTION, on_read);
    SET(CURLOPT_READDATA, transfer);
    SET(CURLOPT_SEEKFUNCTION, on_seek);
    SET(CURLOPT_SEEKDATA, transfer);
    SET(CURLOPT_PREREQFUNCTION, on_request);
    SET(CURLOPT_PREREQDATA, transfer);
    SET(CURLOPT_OPENSOCKETFUNCTION, sock_open);
    SET(CURLOPT_OPENSOCKETDATA, transfer);
    SET(CURLOPT_CLOSESOCKETFUNCTION, sock_close);
    SET(CURLOPT_CLOSESOCKETDATA, transfer->transport); // outlives the transfer, as connections do
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_HTTP09_ALLOWED, 0L);
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOPROXY, ""); // else the environment's
    SET(CURLOPT_HEADEROPT, (long)CURLHEADER_SEPARATE);
    SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    SET(CURLOPT_HTTP_CONTENT_DECODING, 0L);
    SET(CURLOPT_PATH_AS_IS, 1L);
    SET(CURLOPT_USERAGENT, USER_AGENT);
    SET(CURLOPT_TCP_NODELAY, 1L);
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    // The store comes from on_ssl_context; libcurl must neither read nor cache one.
    SET(CURLOPT_CAINFO, NULL);
    SET(CURLOPT_CAPATH, NULL);
    SET(CURLOPT_CA_CACHE_TIMEOUT, 0L);
    // A resumed session is not verified again, and libcurl's cache knows neither our stores nor
    // trust classes.
    SET(CURLOPT_SSL_SESSIONID_CACHE, 0L);
    SET(CURLOPT_SSL_CTX_FUNCTION, on_ssl_context);
    SET(CURLOPT_SSL_CTX_DATA, transfer);
    SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    SET(CURLOPT_CONNECTTIMEOUT_MS, 86400000L); // fetch.c's timers are the ones that count
    SET(CURLOPT_TIMEOUT_MS, 0L);
    return code;
}

static struct transfer *take_transfer(struct curl_transport *transport)
{
    struct list *node = list_pop_front(&transport->spare);
    if (node != NULL) {
        transport->spare_count--;
        return list_entry(node, struct transfer, node);
    }
    struct transfer *transfer = calloc(1, sizeof *transfer);
    if (transfer == NULL)
        return NULL;
    transfer->transport = transport;
    list_init(&transfer->node);
    list_init(&transfer->socks);
    transfer->easy = curl_easy_init();
    if (transfer->easy == NULL || set_constants(transfer->easy, transfer) != CURLE_OK) {
        curl_easy_cleanup(transfer->easy);
        free(transfer);
        return NULL;
    }
    return transfer;
}

static void put_transfer(struct transfer *transfer)
{
    struct curl_transport *transport = transfer->transport;
    url_ref_release(transfer->url);
    SSL_free(transfer->ssl);
    transfer->ssl = NULL;
    transfer->url = NULL;
    transfer->fetch = NULL;
    transfer->lane = NULL;
    // After a failure libcurl 8.14 keeps some of it in the handle: a refused rewinding is tried
    // again, and fails, before the next request, and retries are counted over all of them.
    if (!transfer->is_clean || transport->spare_count >= SPARE_MAX) {
        curl_easy_cleanup(transfer->easy);
        free(transfer);
        return;
    }
    list_push_front(&transport->spare, &transfer->node);
    transport->spare_count++;
}

// ---- a request's options

static struct curl_slist *push_header(struct arena *arena, struct curl_slist *next,
                                      const char *text)
{
    struct curl_slist *item = arena_alloc(arena, sizeof *item);
    if (item == NULL)
        return NULL;
    *item = (struct curl_slist){.data = (char *)text, .next = next};
    return item;
}

// In the order of the request. libcurl's own Expect, Accept and Content-Type are switched off.
static struct curl_slist *make_headers(const struct fetch *fetch)
{
    struct arena *arena = fetch->arena;
    struct curl_slist *list = push_header(arena, NULL, "Expect:");
    if (list != NULL && !fetch->has_accept)
        list = push_header(arena, list, "Accept:");
    if (list != NULL && fetch->has_body && !fetch->has_content_type)
        list = push_header(arena, list, "Content-Type:");
    for (size_t i = fetch->header_count; i > 0 && list != NULL; i--) {
        const struct http1_header *header = &fetch->headers[i - 1];
        size_t size = header->name.len + header->value.len + 3;
        char *text = arena_alloc(arena, size);
        if (text == NULL)
            return NULL;
        memcpy(text, header->name.ptr, header->name.len);
        char *at = text + header->name.len;
        if (header->value.len > 0) {
            *at++ = ':';
            *at++ = ' ';
            memcpy(at, header->value.ptr, header->value.len);
            at += header->value.len;
        } else {
            *at++ = ';'; // libcurl's way to say: with an empty value
        }
        *at = '\0';
        list = push_header(arena, list, text);
    }
    return list;
}

static CURLcode set_method(struct transfer *transfer, struct fetch *fetch)
{
    CURL *easy = transfer->easy;
    CURLcode code = CURLE_OK;
    const char *custom = fetch->method;
    struct slice small = fetch->has_body ? fetch_take_body(fetch, SMALL_BODY_MAX) : SLICE_NONE;
    SET(CURLOPT_POSTFIELDS, small.ptr); // chooses POST: the others come after it
    SET(CURLOPT_HTTPGET, 1L);           // resets upload and nobody
    if (small.ptr != NULL) {
        SET(CURLOPT_POST, 1L);
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)small.len);
        if (strcmp(custom, "POST") == 0)
            custom = NULL;
    } else if (fetch->has_body) {
        SET(CURLOPT_UPLOAD, 1L);
        SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t)fetch->body_length);
        SET(CURLOPT_UPLOAD_BUFFERSIZE, 65536L);
        if (strcmp(custom, "PUT") == 0)
            custom = NULL;
    } else if (strcmp(custom, "HEAD") == 0) {
        SET(CURLOPT_NOBODY, 1L);
        custom = NULL;
    } else if (strcmp(custom, "GET") == 0) {
        custom = NULL;
    }
    if (custom != NULL || transfer->has_custom_method)
        SET(CURLOPT_CUSTOMREQUEST, custom);
    transfer->has_custom_method = custom != NULL;
    return code;
}

static CURLcode set_request(struct transfer *transfer, struct fetch *fetch,
                            struct curl_slist *headers, struct curl_slist *resolve)
{
    CURL *easy = transfer->easy;
    CURLcode code = set_method(transfer, fetch);
    SET(CURLOPT_URL, NULL); // else the text of an earlier CURLU stays in use
    SET(CURLOPT_CURLU, transfer->url->handle);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_RESOLVE, resolve);
    if (fetch->proxy != NULL || transfer->has_proxy) {
        SET(CURLOPT_PROXY, fetch->proxy ? fetch->proxy : "");
        SET(CURLOPT_HTTPPROXYTUNNEL, 0L);
        transfer->has_proxy = fetch->proxy != NULL;
    }
    return code;
}

static int curl_start(void *self, struct fetch *fetch)
{
    struct curl_transport *transport = self;
    struct lane *lane;
    int err = lane_take(transport, fetch, &lane);
    if (err)
        return err;
    struct transfer *transfer = take_transfer(transport);
    if (transfer == NULL)
        return GW_ENOMEM;
    transfer->fetch = fetch;
    transfer->lane = lane;
    transfer->request_count = 0;
    transfer->must_restart = false;
    transfer->restart_count = 0;
    transfer->has_opened = false;
    transfer->is_connecting = true;
    transfer->is_clean = false;
    transfer->error[0] = '\0';
    struct slice url_text = fetch_url_text(fetch);
    transfer->url = url_text.ptr ? origin_url(lane->origin, url_text) : NULL;
    struct curl_slist *headers = make_headers(fetch), *resolve = NULL;
    err = transfer->url && headers ? lane_resolve(lane, fetch, &resolve) : GW_ENOMEM;
    if (err == 0 && set_request(transfer, fetch, headers, resolve) != CURLE_OK)
        err = GW_EINTERNAL;
    if (err == 0)
        err = lane_add(lane, transfer);
    if (err) {
        put_transfer(transfer);
        return err;
    }
    fetch->transfer = transfer;
    return 0;
}

static void curl_stop(void *self, struct fetch *fetch)
{
    (void)self;
    struct transfer *transfer = fetch->transfer;
    curl_off_t upload = 0;
    long request_size = 0;
    curl_easy_getinfo(transfer->easy, CURLINFO_REQUEST_SIZE, &request_size);
    curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_UPLOAD_T, &upload);
    // Before 8.7 the request's size has only what was written together with the head, which for a
    // small body is all of it; from then on it has every byte.
    if (request_size > 0 && (fetch->whole_body.ptr != NULL ||
                             curl_version_info(CURLVERSION_NOW)->version_num >= 0x080700))
        upload = 0;
    fetch->info.bytes_sent = (uint64_t)request_size + (uint64_t)upload;
    lane_remove(transfer->lane, transfer);
    fetch->transfer = NULL;
    put_transfer(transfer);
}

static void curl_resume(void *self, struct fetch *fetch)
{
    (void)self;
    struct transfer *transfer = fetch->transfer;
    struct lane *lane = transfer->lane;
    // May call on_write at once, which may pause again, cancel or fail: then the chunk is lost to
    // libcurl and the transfer must not go on.
    CURLcode code =
        curl_easy_pause(transfer->easy, (fetch->is_paused ? CURLPAUSE_RECV : 0) |
                                            (fetch->is_upload_waiting ? CURLPAUSE_SEND : 0));
    lane_make_due(lane);
    if (code != CURLE_OK)
        transfer_finish(transfer, code);
}

// ---- ends

void transfer_settle(struct transfer *transfer)
{
    if (transfer->is_new)
        transfer->lane->new_count--;
    transfer->is_new = false;
}

void transfer_observe(struct transfer *transfer)
{
    if (!sock_is_connected(transfer))
        return;
    transfer->is_connecting = false;
    if (transfer->fetch->url.is_tls)
        fetch_on_connected(transfer->fetch);
}

static int map_error(const struct transfer *transfer, CURLcode code)
{
    switch (code) {
    case CURLE_OK: return 0;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY: return GW_EDNS;
    case CURLE_COULDNT_CONNECT: return GW_ECONNECT;
    case CURLE_OPERATION_TIMEDOUT: return GW_ETIMEOUT;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS: return GW_ETLS;
    case CURLE_RECV_ERROR: // libcurl 7.88 reports malformed chunks as this
        return strstr(transfer->error, "chunk") ? GW_EPROTO : GW_ERESET;
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_SEND_ERROR:
    case CURLE_SEND_FAIL_REWIND: return GW_ERESET;
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_BAD_CONTENT_ENCODING:
#if LIBCURL_VERSION_NUM >= 0x080600
    case CURLE_TOO_LARGE:
#endif
    case CURLE_HTTP_RETURNED_ERROR: return GW_EPROTO;
    case CURLE_OUT_OF_MEMORY: return GW_ENOMEM;
    default: return GW_EINTERNAL;
    }
}

void transfer_finish(struct transfer *transfer, CURLcode code)
{
    struct fetch *fetch = transfer->fetch;
    char detail[CURL_ERROR_SIZE];
    int err = map_error(transfer, code);
    transfer->is_clean = code == CURLE_OK;
    memcpy(detail, transfer->error, sizeof detail);
    if (err == 0 && is_cut(transfer)) {
        err = GW_ERESET;
        snprintf(detail, sizeof detail, "the TLS connection was cut without close_notify");
    }
    if (transfer->must_restart && !fetch->is_dead && transfer->restart_count < LANE_TRANSFERS) {
        struct curl_transport *transport = transfer->transport;
        unsigned count = transfer->restart_count + 1;
        curl_stop(transport, fetch);
        err = curl_start(transport, fetch);
        if (err == 0) {
            ((struct transfer *)fetch->transfer)->restart_count = count;
            return;
        }
    }
    fetch_on_finished(fetch, err, detail[0] ? detail : curl_easy_strerror(code));
}

// ---- life

static int open_dead_fd(void)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return -1;
    close(pair[1]);
    return pair[0];
}

static int curl_open(struct fetcher *fetcher, struct loop *loop, void **out)
{
    struct curl_transport *transport = calloc(1, sizeof *transport);
    if (transport == NULL)
        return GW_ENOMEM;
    transport->fetcher = fetcher;
    transport->loop = loop;
    list_init(&transport->due);
    list_init(&transport->retired);
    list_init(&transport->lanes);
    list_init(&transport->spare);
    loop_timer_init(loop, &transport->sweep, lane_on_sweep);
    transport->origins = map_new();
    transport->dead_fd = open_dead_fd();
    if (transport->origins == NULL || transport->dead_fd < 0) {
        if (transport->dead_fd >= 0)
            close(transport->dead_fd);
        map_free(transport->origins, NULL);
        free(transport);
        return GW_ENOMEM;
    }
    *out = transport;
    return 0;
}

static void curl_close(void *self)
{
    struct curl_transport *transport = self;
    lane_free_all(transport);
    loop_timer_stop(&transport->sweep);
    struct list *node;
    while ((node = list_pop_front(&transport->spare)) != NULL) {
        struct transfer *transfer = list_entry(node, struct transfer, node);
        curl_easy_cleanup(transfer->easy);
        free(transfer);
    }
    map_free(transport->origins, NULL);
    free(transport->socks);
    close(transport->dead_fd);
    free(transport);
}

static void curl_run(void *self)
{
    lane_run_due(self);
}

static uint32_t curl_idle_connections(const void *self)
{
    return ((const struct curl_transport *)self)->idle_count;
}

const struct fetch_transport transport_curl = {
    .name = "curl",
    .open = curl_open,
    .close = curl_close,
    .start = curl_start,
    .stop = curl_stop,
    .resume = curl_resume,
    .run = curl_run,
    .idle_connections = curl_idle_connections,
};

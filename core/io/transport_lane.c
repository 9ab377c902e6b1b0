// Lanes and sockets of the libcurl transport: see transport_curl.h for the words. libcurl calls
// on_curl_socket, on_curl_timer, sock_open and sock_close from inside its functions; they never
// call back into it.
#include "io/transport_curl.h"

#include "base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define SWEEP_MS 10000
#define MAX_SOCK_FD (1 << 20)
#define MAX_LANES_LOOKED_AT 8

static void on_poll(uv_poll_t *poll, int status, int events);
static void lane_retire(struct lane *lane);

// ---- sockets

static void sock_arm(struct sock *sock, int events)
{
    if (sock->armed == events)
        return;
    sock->armed = events;
    if (events == 0)
        uv_poll_stop(&sock->poll);
    else
        uv_poll_start(&sock->poll, events, on_poll);
}

static void sock_attach(struct sock *sock, struct transfer *transfer)
{
    if (sock->transfer == transfer)
        return;
    if (sock->transfer == NULL && !sock->is_dead) {
        sock->lane->idle_count--;
        sock->lane->transport->idle_count--;
    }
    list_remove(&sock->node);
    list_push_back(&transfer->socks, &sock->node);
    sock->transfer = transfer;
}

static void sock_detach(struct sock *sock)
{
    list_remove(&sock->node);
    list_push_back(&sock->lane->idle_socks, &sock->node);
    sock->transfer = NULL;
    sock->lane->idle_count++;
    sock->lane->transport->idle_count++;
    // libcurl 8.10 and later may still want it, to end TLS in good order.
    sock_arm(sock, UV_READABLE | (sock->wants & CURL_POLL_OUT ? UV_WRITABLE : 0));
}

static int keep_sock(struct curl_transport *transport, struct sock *sock)
{
    size_t fd = (size_t)sock->fd;
    if (fd >= MAX_SOCK_FD)
        return GW_EFULL;
    if (fd >= transport->sock_capacity) {
        size_t capacity = transport->sock_capacity ? transport->sock_capacity : 64;
        while (capacity <= fd)
            capacity *= 2;
        struct sock **socks = realloc(transport->socks, capacity * sizeof *socks);
        if (socks == NULL)
            return GW_ENOMEM;
        memset(socks + transport->sock_capacity, 0,
               (capacity - transport->sock_capacity) * sizeof *socks);
        transport->socks = socks;
        transport->sock_capacity = capacity;
    }
    transport->socks[fd] = sock;
    return 0;
}

static struct sock *sock_find(const struct curl_transport *transport, curl_socket_t fd)
{
    return fd >= 0 && (size_t)fd < transport->sock_capacity ? transport->socks[fd] : NULL;
}

static void on_sock_closed(uv_handle_t *handle)
{
    free(list_entry(handle, struct sock, poll));
}

// The descriptor is closed, or about to be. The table may already name another.
static void sock_forget(struct sock *sock)
{
    struct curl_transport *transport = sock->lane->transport;
    if (sock_find(transport, sock->fd) == sock)
        transport->socks[sock->fd] = NULL;
    if (sock->transfer == NULL && !sock->is_dead) {
        sock->lane->idle_count--;
        transport->idle_count--;
    }
    list_remove(&sock->node);
    uv_poll_stop(&sock->poll);
    uv_close((uv_handle_t *)&sock->poll, on_sock_closed);
}

curl_socket_t sock_open(void *user, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct transfer *transfer = user;
    (void)purpose;
    if (transfer->fetch == NULL || !fetch_may_connect(transfer->fetch, &address->addr))
        return CURL_SOCKET_BAD;
    struct sock *sock = calloc(1, sizeof *sock), *old;
    int fd = socket(address->family, address->socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                    address->protocol);
    if (sock == NULL || fd < 0) {
        if (fd < 0)
            fetch_note(transfer->fetch, GW_EIO, "no socket");
        free(sock);
        if (fd >= 0)
            close(fd);
        return CURL_SOCKET_BAD;
    }
    // libcurl 7.88 to 8.2 closes sockets that never connected without telling (curl#11439).
    if ((old = sock_find(transfer->transport, fd)) != NULL)
        sock_forget(old);
    sock->fd = fd;
    sock->lane = transfer->lane;
    sock->transfer = transfer;
    if (uv_poll_init_socket(loop_uv(transfer->transport->loop), &sock->poll, fd) != 0) {
        free(sock);
        close(fd);
        return CURL_SOCKET_BAD;
    }
    list_push_back(&transfer->socks, &sock->node);
    if (keep_sock(transfer->transport, sock)) {
        list_remove(&sock->node);
        uv_close((uv_handle_t *)&sock->poll, on_sock_closed);
        close(fd);
        return CURL_SOCKET_BAD;
    }
    transfer->has_opened = true;
    transfer_settle(transfer);
    return fd;
}

int sock_close(void *user, curl_socket_t fd)
{
    struct curl_transport *transport = user;
    struct sock *sock = sock_find(transport, fd);
    if (sock != NULL)
        sock_forget(sock);
    return close(fd);
}

static int on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *unused)
{
    struct lane *lane = user;
    struct sock *sock = sock_find(lane->transport, fd);
    (void)unused;
    if (sock == NULL)
        return 0;
    sock->wants = what == CURL_POLL_REMOVE ? 0 : what & (CURL_POLL_IN | CURL_POLL_OUT);
    struct transfer *transfer = NULL;
    if (sock->wants == 0) {
        // Either the transfer is over and the connection goes to the pool, or it is paused: then
        // unread bytes would keep the poll firing.
        if (sock->transfer != NULL && sock->transfer->fetch->is_paused)
            sock_arm(sock, 0);
        else if (sock->armed & UV_WRITABLE)
            sock_arm(sock, UV_READABLE);
        return 0;
    }
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&transfer);
    if (transfer != NULL)
        sock_attach(sock, transfer);
    sock_arm(sock, (sock->wants & CURL_POLL_IN ? UV_READABLE : 0) |
                       (sock->wants & CURL_POLL_OUT ? UV_WRITABLE : 0));
    return 0;
}

// Readable while idle: the upstream closed it, or sent what nobody asked for. libcurl finds that
// out at the next use (7.88 does not even when bytes wait); until then the descriptor must neither
// spin, nor sit in CLOSE_WAIT, nor be taken for alive: another dead socket takes its number.
static void sock_die(struct sock *sock)
{
    struct lane *lane = sock->lane;
    sock_arm(sock, 0);
    sock->is_dead = true;
    sock->local_port = 0;
    lane->idle_count--;
    lane->transport->idle_count--;
    (void)dup3(lane->transport->dead_fd, sock->fd, O_CLOEXEC);
    if (lane->in_flight == 0 && lane->idle_count == 0)
        lane_retire(lane);
}

static int read_local_port(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &len) != 0)
        return 0;
    if (address.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)(void *)&address)->sin6_port);
    return ntohs(((struct sockaddr_in *)(void *)&address)->sin_port);
}

int sock_take(struct transfer *transfer, int local_port)
{
    struct list *node;
    list_each(node, &transfer->socks)
    {
        struct sock *sock = list_entry(node, struct sock, node);
        if (sock->local_port == 0 && read_local_port(sock->fd) == local_port)
            sock->local_port = local_port;
    }
    if (transfer->has_opened)
        return 0;
    list_each(node, &transfer->lane->idle_socks)
    {
        struct sock *sock = list_entry(node, struct sock, node);
        char byte;
        if (sock->is_dead || sock->local_port != local_port)
            continue;
        sock_attach(sock, transfer);
        // An answer before its request, or the end: a late close is caught here as well.
        return recv(sock->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN ? 0
                                                                                        : GW_ERESET;
    }
    return 0;
}

bool sock_is_connected(const struct transfer *transfer)
{
    struct sockaddr_storage peer;
    const struct list *node;
    list_each(node, &transfer->socks)
    {
        socklen_t len = sizeof peer;
        if (getpeername(list_entry(node, struct sock, node)->fd, (struct sockaddr *)&peer, &len) ==
            0)
            return true;
    }
    return false;
}

static void lane_act(struct lane *lane, curl_socket_t fd, int bits)
{
    int running, left;
    curl_multi_socket_action(lane->multi, fd, bits, &running);
    struct list *node;
    list_each(node, &lane->transfers)
    {
        struct transfer *transfer = list_entry(node, struct transfer, node);
        if (transfer->is_connecting)
            transfer_observe(transfer);
    }
    CURLMsg *message;
    while ((message = curl_multi_info_read(lane->multi, &left)) != NULL) {
        struct transfer *transfer = NULL;
        if (message->msg != CURLMSG_DONE)
            continue;
        CURLcode code = message->data.result;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&transfer);
        if (transfer != NULL && transfer->fetch != NULL)
            transfer_finish(transfer, code);
    }
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct sock *sock = list_entry(poll, struct sock, poll);
    if (sock->wants == 0) {
        if (sock->transfer == NULL)
            sock_die(sock);
        else
            sock_arm(sock, 0);
        return;
    }
    int bits = 0;
    if (status < 0)
        bits = CURL_CSELECT_ERR | (sock->wants & CURL_POLL_IN ? CURL_CSELECT_IN : 0) |
               (sock->wants & CURL_POLL_OUT ? CURL_CSELECT_OUT : 0);
    if ((events & UV_READABLE) && (sock->wants & CURL_POLL_IN))
        bits |= CURL_CSELECT_IN;
    if ((events & UV_WRITABLE) && (sock->wants & CURL_POLL_OUT))
        bits |= CURL_CSELECT_OUT;
    if (bits != 0)
        lane_act(sock->lane, sock->fd, bits);
}

// ---- libcurl's timers

void lane_make_due(struct lane *lane)
{
    if (list_is_empty(&lane->due))
        list_push_back(&lane->transport->due, &lane->due);
    fetcher_wake(lane->transport->fetcher);
}

static void start_lane_timer(struct lane *lane, long timeout_ms)
{
    // libcurl does not ask again when it is woken too early, so count from its present, not from
    // the beginning of the turn.
    uint64_t late_ms = clock_boot_ms() - loop_now_ms(lane->transport->loop);
    loop_timer_start(&lane->timer, (uint64_t)timeout_ms + late_ms + 1);
}

static int on_curl_timer(CURLM *multi, long timeout_ms, void *user)
{
    struct lane *lane = user;
    (void)multi;
    if (timeout_ms < 0) {
        loop_timer_stop(&lane->timer);
    } else if (timeout_ms == 0) {
        lane_make_due(lane);
    } else {
        start_lane_timer(lane, timeout_ms);
    }
    return 0;
}

static void on_lane_timer(struct loop_timer *timer)
{
    struct lane *lane = list_entry(timer, struct lane, timer);
    lane_act(lane, CURL_SOCKET_TIMEOUT, 0);
    long timeout_ms = -1;
    if (!loop_timer_is_running(timer) && list_is_empty(&lane->due) &&
        curl_multi_timeout(lane->multi, &timeout_ms) == CURLM_OK && timeout_ms >= 0)
        start_lane_timer(lane, timeout_ms);
}

// ---- origins

static bool put_bytes(char *key, size_t size, size_t *at, const void *bytes, size_t len)
{
    if (len > size - *at)
        return false;
    memcpy(key + *at, bytes, len);
    *at += len;
    return true;
}

// NUL separates: no part contains one.
static size_t write_key(const struct fetch *fetch, char *key, size_t size)
{
    struct slice proxy = slice_str(fetch->proxy), ca_file = slice_str(fetch->ca_file);
    char flags[] = {(char)('0' + fetch->trust), fetch->url.is_tls ? 's' : 'p',
                    fetch->check_address ? 'c' : 'n'};
    size_t at = 0;
    bool fits = put_bytes(key, size, &at, flags, sizeof flags) &&
                put_bytes(key, size, &at, &fetch->trust_id, sizeof fetch->trust_id) &&
                put_bytes(key, size, &at, &fetch->url.port, sizeof fetch->url.port) &&
                put_bytes(key, size, &at, fetch->url.host.ptr, fetch->url.host.len) &&
                put_bytes(key, size, &at, "", 1) &&
                (proxy.len == 0 || put_bytes(key, size, &at, proxy.ptr, proxy.len)) &&
                put_bytes(key, size, &at, "", 1) &&
                (ca_file.len == 0 || put_bytes(key, size, &at, ca_file.ptr, ca_file.len));
    return fits ? at : 0;
}

static int get_origin(struct curl_transport *transport, const struct fetch *fetch,
                      struct origin **out)
{
    char key[2048];
    size_t len = write_key(fetch, key, sizeof key);
    if (len == 0)
        return GW_ETOOBIG;
    struct origin *origin = map_get(transport->origins, slice_of(key, len));
    if (origin == NULL) {
        origin = calloc(1, sizeof *origin + len);
        if (origin == NULL)
            return GW_ENOMEM;
        origin->transport = transport;
        list_init(&origin->open);
        list_init(&origin->full);
        if (fetch->url.is_tls && (origin->store = transport_tls_store(fetch->ca_file)) == NULL) {
            free(origin);
            return GW_ETLS;
        }
        origin->key_len = len;
        memcpy(origin->key, key, len);
        int err = map_put(transport->origins, slice_of(key, len), origin, NULL);
        if (err) {
            X509_STORE_free(origin->store);
            free(origin);
            return err;
        }
    }
    *out = origin;
    return 0;
}

void url_ref_release(struct url_ref *url)
{
    if (url == NULL || --url->references > 0)
        return;
    curl_url_cleanup(url->handle);
    free(url);
}

// libcurl would parse the text for every request; an upstream has few different URLs.
struct url_ref *origin_url(struct origin *origin, struct slice text)
{
    for (size_t i = 0; i < ORIGIN_URLS; i++) {
        struct url_ref *url = origin->urls[i];
        if (url != NULL && url->len == text.len && memcmp(url->text, text.ptr, text.len) == 0) {
            url->references++;
            return url;
        }
    }
    struct url_ref *url = malloc(sizeof *url + text.len + 1);
    if (url == NULL)
        return NULL;
    *url = (struct url_ref){.handle = curl_url(), .references = 2, .len = text.len};
    memcpy(url->text, text.ptr, text.len);
    url->text[text.len] = '\0';
    if (url->handle == NULL ||
        curl_url_set(url->handle, CURLUPART_URL, url->text, CURLU_PATH_AS_IS) != CURLUE_OK) {
        curl_url_cleanup(url->handle);
        free(url);
        return NULL;
    }
    url_ref_release(origin->urls[origin->next_url]);
    origin->urls[origin->next_url] = url;
    origin->next_url = (origin->next_url + 1) % ORIGIN_URLS;
    return url;
}

static void free_origin(struct origin *origin)
{
    map_take(origin->transport->origins, slice_of(origin->key, origin->key_len));
    for (size_t i = 0; i < ORIGIN_URLS; i++)
        url_ref_release(origin->urls[i]);
    X509_STORE_free(origin->store);
    free(origin);
}

// ---- lanes

static int lane_new(struct origin *origin, struct lane **out)
{
    struct curl_transport *transport = origin->transport;
    struct lane *lane = calloc(1, sizeof *lane);
    CURLM *multi = curl_multi_init();
    if (lane == NULL || multi == NULL) {
        free(lane);
        if (multi != NULL)
            curl_multi_cleanup(multi);
        return GW_ENOMEM;
    }
    lane->multi = multi;
    lane->origin = origin;
    lane->transport = transport;
    list_init(&lane->due);
    list_init(&lane->transfers);
    list_init(&lane->idle_socks);
    loop_timer_init(transport->loop, &lane->timer, on_lane_timer);
    curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket);
    curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, lane);
    curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_curl_timer);
    curl_multi_setopt(multi, CURLMOPT_TIMERDATA, lane);
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long)LANE_TRANSFERS);
    curl_multi_setopt(multi, CURLMOPT_PIPELINING, CURLPIPE_NOTHING);
    list_push_front(&origin->open, &lane->node);
    list_push_back(&transport->lanes, &lane->all);
    origin->lane_count++;
    lane->idle_since_ms = loop_now_ms(transport->loop);
    if (!loop_timer_is_running(&transport->sweep))
        loop_timer_start(&transport->sweep, SWEEP_MS);
    *out = lane;
    return 0;
}

static void lane_free(struct lane *lane)
{
    struct origin *origin = lane->origin;
    list_remove(&lane->node);
    list_remove(&lane->all);
    list_remove(&lane->due);
    curl_multi_cleanup(lane->multi); // closes its connections through sock_close
    loop_timer_stop(&lane->timer);
    list_remove(&lane->due);
    free(lane->resolve_text);
    free(lane);
    if (--origin->lane_count == 0)
        free_origin(origin);
}

static void lane_retire(struct lane *lane)
{
    if (lane->is_retired)
        return;
    lane->is_retired = true;
    list_remove(&lane->due);
    list_remove(&lane->node);
    list_push_back(&lane->transport->retired, &lane->node);
    fetcher_wake(lane->transport->fetcher);
}

void lane_on_sweep(struct loop_timer *timer)
{
    struct curl_transport *transport = list_entry(timer, struct curl_transport, sweep);
    uint64_t now = loop_now_ms(transport->loop);
    struct list *node;
    list_each(node, &transport->lanes)
    {
        struct lane *lane = list_entry(node, struct lane, all);
        if (lane->in_flight == 0 && now - lane->idle_since_ms >= LANE_IDLE_MS)
            lane_retire(lane);
    }
    if (!list_is_empty(&transport->lanes))
        loop_timer_start(&transport->sweep, SWEEP_MS);
}

int lane_take(struct curl_transport *transport, const struct fetch *fetch, struct lane **out)
{
    struct origin *origin = NULL;
    int err = get_origin(transport, fetch, &origin);
    if (err)
        return err;
    // The most recently used one with a connection to spare, else the most recently used one.
    struct list *node;
    int looked = 0;
    list_each(node, &origin->open)
    {
        struct lane *lane = list_entry(node, struct lane, node);
        if (lane->idle_count > lane->new_count) {
            *out = lane;
            return 0;
        }
        if (++looked == MAX_LANES_LOOKED_AT)
            break;
    }
    if (!list_is_empty(&origin->open)) {
        *out = list_entry(origin->open.next, struct lane, node);
        return 0;
    }
    err = lane_new(origin, out);
    if (err && origin->lane_count == 0)
        free_origin(origin);
    return err;
}

int lane_resolve(struct lane *lane, const struct fetch *fetch, struct curl_slist **out)
{
    *out = NULL;
    if (fetch->is_dial_literal)
        return 0; // libcurl reads literals without a look-up
    if (lane->address_count == fetch->address_count &&
        memcmp(lane->addresses, fetch->addresses,
               fetch->address_count * sizeof fetch->addresses[0]) == 0)
        return 0;
    size_t size = fetch->dial_host.len + 16 + fetch->address_count * (INET6_ADDRSTRLEN + 3);
    char *text = malloc(size);
    if (text == NULL)
        return GW_ENOMEM;
    // Without a leading '+' the entry stays until it is replaced.
    size_t at =
        (size_t)snprintf(text, size, "%.*s:%u:", SLICE_FMT(fetch->dial_host), fetch->dial_port);
    for (size_t i = 0; i < fetch->address_count; i++) {
        char address[INET6_ADDRSTRLEN];
        bool is_v6 = fetch->addresses[i].family == AF_INET6;
        inet_ntop(fetch->addresses[i].family, fetch->addresses[i].bytes, address, sizeof address);
        at += (size_t)snprintf(text + at, size - at, "%s%s%s%s", i ? "," : "", is_v6 ? "[" : "",
                               address, is_v6 ? "]" : "");
    }
    // Transfers that were added but not yet run read the new text, which is as good.
    free(lane->resolve_text);
    lane->resolve_text = text;
    lane->resolve = (struct curl_slist){.data = text, .next = NULL};
    memcpy(lane->addresses, fetch->addresses, fetch->address_count * sizeof lane->addresses[0]);
    lane->address_count = fetch->address_count;
    *out = &lane->resolve;
    return 0;
}

int lane_add(struct lane *lane, struct transfer *transfer)
{
    if (curl_multi_add_handle(lane->multi, transfer->easy) != CURLM_OK) {
        lane->address_count = 0; // it may not have read them
        return GW_EINTERNAL;
    }
    list_push_back(&lane->transfers, &transfer->node);
    transfer->is_new = true;
    lane->new_count++;
    if (++lane->in_flight == LANE_TRANSFERS) {
        list_remove(&lane->node);
        list_push_back(&lane->origin->full, &lane->node);
    }
    lane_make_due(lane);
    return 0;
}

void lane_remove(struct lane *lane, struct transfer *transfer)
{
    curl_multi_remove_handle(lane->multi, transfer->easy);
    transfer_settle(transfer);
    while (!list_is_empty(&transfer->socks)) {
        struct sock *sock = list_entry(transfer->socks.next, struct sock, node);
        if (sock->local_port == 0)
            sock_forget(sock); // never connected, so closed: see sock_open
        else
            sock_detach(sock);
    }
    list_remove(&transfer->node);
    lane->in_flight--;
    lane->idle_since_ms = loop_now_ms(lane->transport->loop);
    // To the front: its idle connection is the warmest.
    list_remove(&lane->node);
    list_push_front(&lane->origin->open, &lane->node);
}

void lane_run_due(struct curl_transport *transport)
{
    struct list now, *node;
    list_init(&now);
    list_insert_before(&transport->due, &now);
    list_remove(&transport->due);
    while ((node = list_pop_front(&now)) != NULL)
        lane_act(list_entry(node, struct lane, due), CURL_SOCKET_TIMEOUT, 0);
    while ((node = list_pop_front(&transport->retired)) != NULL)
        lane_free(list_entry(node, struct lane, node));
}

void lane_free_all(struct curl_transport *transport)
{
    while (!list_is_empty(&transport->lanes))
        lane_free(list_entry(transport->lanes.next, struct lane, all));
}

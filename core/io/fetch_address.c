// Which addresses a fetch may use: those of its own look-up that pass the rules against SSRF.
#include "io/transport.h"

#include <arpa/inet.h>

static void to_sockaddr(const struct fetch_address *from, struct sockaddr_storage *to)
{
    memset(to, 0, sizeof *to);
    to->ss_family = from->family;
    if (from->family == AF_INET)
        memcpy(&((struct sockaddr_in *)(void *)to)->sin_addr, from->bytes, 4);
    else
        memcpy(&((struct sockaddr_in6 *)(void *)to)->sin6_addr, from->bytes, 16);
}

bool fetch_read_address(const struct sockaddr *from, struct fetch_address *to)
{
    memset(to, 0, sizeof *to);
    to->family = from->sa_family;
    if (from->sa_family == AF_INET)
        memcpy(to->bytes, &((const struct sockaddr_in *)(const void *)from)->sin_addr, 4);
    else if (from->sa_family == AF_INET6)
        memcpy(to->bytes, &((const struct sockaddr_in6 *)(const void *)from)->sin6_addr, 16);
    else
        return false;
    return true;
}

bool fetch_address_passes(const struct fetch *fetch, const struct sockaddr *address)
{
    if (!fetch->check_address ||
        (!url_address_is_private(address) && !url_port_is_denied(fetch->url.port)))
        return true;
    for (size_t i = 0; i < fetch->allowed_private_count; i++) {
        if (url_rule_matches(fetch->allowed_private[i], fetch->url.host, fetch->url.port, address))
            return true;
    }
    return false;
}

static bool was_looked_up(const struct fetch *fetch, const struct sockaddr *address)
{
    struct fetch_address bytes;
    if (!fetch_read_address(address, &bytes))
        return false;
    for (size_t i = 0; i < fetch->address_count; i++) {
        if (memcmp(&fetch->addresses[i], &bytes, sizeof bytes) == 0)
            return true;
    }
    return false;
}

bool fetch_may_reuse(const struct fetch *fetch, const struct sockaddr *address)
{
    return !fetch->check_address ||
           (was_looked_up(fetch, address) && fetch_address_passes(fetch, address));
}

bool fetch_may_connect(struct fetch *fetch, const struct sockaddr *address)
{
    bool is_ours = !fetch->is_dead && was_looked_up(fetch, address);
    if (is_ours && (fetch->proxy != NULL || fetch_address_passes(fetch, address)))
        return true;
    fetch_note(fetch, GW_EDENIED, "the address to connect to is not allowed");
    return false;
}

// A pooled connection was opened for another fetch, perhaps under other rules.
bool fetch_peer_passes(const struct fetch *fetch, const char *ip)
{
    struct sockaddr_storage address;
    struct fetch_address bytes = {.family = AF_INET};
    if (!fetch->check_address || fetch->proxy != NULL)
        return true;
    if (inet_pton(AF_INET, ip, bytes.bytes) != 1) {
        bytes.family = AF_INET6;
        if (inet_pton(AF_INET6, ip, bytes.bytes) != 1)
            return false;
    }
    to_sockaddr(&bytes, &address);
    return fetch_address_passes(fetch, (const struct sockaddr *)&address);
}

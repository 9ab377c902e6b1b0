// Who is calling: the socket's peer, or what trusted proxies say (PROMISES T18). Only addresses in
// TRUSTED_PROXIES are believed; the right-most address that is not a trusted proxy is the client.
#include "flow/exchange.h"

#include <arpa/inet.h>

static bool parse_address(struct slice text, struct sockaddr_storage *out)
{
    char name[INET6_ADDRSTRLEN];
    if (text.len == 0 || text.len >= sizeof name)
        return false;
    memcpy(name, text.ptr, text.len);
    name[text.len] = '\0';
    struct sockaddr_in *in4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, name, &in4->sin_addr) == 1) {
        in4->sin_family = AF_INET;
        return true;
    }
    if (inet_pton(AF_INET6, name, &in6->sin6_addr) == 1) {
        in6->sin6_family = AF_INET6;
        return true;
    }
    return false;
}

static bool is_trusted(const struct conf *conf, struct slice address)
{
    struct sockaddr_storage storage;
    if (!parse_address(address, &storage))
        return false;
    for (size_t i = 0; i < conf->trusted_proxies.count; i++) {
        if (url_rule_matches(conf->trusted_proxies.items[i], address, 0,
                             (const struct sockaddr *)&storage))
            return true;
    }
    return false;
}

struct slice client_address(const struct conf *conf, const struct http1_request *request,
                            struct arena *arena)
{
    struct slice peer = slice_str(request->peer_ip);
    struct slice list = http1_header(request, "x-forwarded-for");
    if (conf->trusted_proxies.count == 0 || !list.ptr || !is_trusted(conf, peer))
        return peer;
    struct slice client = peer;
    while (list.len > 0) {
        size_t start = list.len;
        while (start > 0 && list.ptr[start - 1] != ',')
            start--;
        struct slice item = slice_trim(slice_of(list.ptr + start, list.len - start));
        struct sockaddr_storage ignored;
        if (!parse_address(item, &ignored))
            break; // an unreadable entry: what lies left of it cannot be believed
        client = item;
        if (!is_trusted(conf, item))
            break;
        list.len = start > 0 ? start - 1 : 0;
    }
    struct slice copy = arena_copy(arena, client);
    return copy.ptr ? copy : peer;
}

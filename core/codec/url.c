// URLs and address rules. The parser accepts less than RFC 3986 on purpose: what two parsers could
// read differently (userinfo, backslashes, numeric hosts in odd forms, percent-encoded hosts) is
// refused, because the checks here and the connection made elsewhere must mean the same host.
#include "codec/url.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

#define URL_MAX_LEN 8192
#define URL_MAX_HOST 253

static int parse_host(struct slice text, struct arena *arena, struct slice *host, const char **why);
static int parse_port(struct slice text, uint16_t *port);

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_alpha(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

static int hex_value(char c)
{
    if (is_digit(c))
        return c - '0';
    c = lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// ---- parsing

static bool is_path_char(char c)
{
    if (c <= 0x20 || c >= 0x7f)
        return false;
    return strchr("\"<>\\^`{|}#", c) == NULL;
}

static int check_path(struct slice text, const char **why)
{
    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (!is_path_char(c)) {
            *why = c == '#' ? "URL has a fragment" : "URL has a character that must be encoded";
            return GW_EINVAL;
        }
        if (c == '%') {
            if (i + 2 >= text.len || hex_value(text.ptr[i + 1]) < 0 ||
                hex_value(text.ptr[i + 2]) < 0) {
                *why = "URL has a broken percent-encoding";
                return GW_EINVAL;
            }
            i += 2;
        }
    }
    return 0;
}

int url_parse(struct slice text, struct arena *arena, struct url *url, const char **why)
{
    const char *unused;
    if (why == NULL)
        why = &unused;
    *why = "";
    *url = (struct url){0};
    if (text.len > URL_MAX_LEN) {
        *why = "URL is too long";
        return GW_ETOOBIG;
    }
    size_t at;
    if (text.len >= 7 && slice_is_nocase(slice_of(text.ptr, 7), "http://")) {
        at = 7;
    } else if (text.len >= 8 && slice_is_nocase(slice_of(text.ptr, 8), "https://")) {
        at = 8;
        url->is_tls = true;
    } else {
        *why = "URL must start with http:// or https://";
        return GW_EINVAL;
    }
    size_t end = at;
    while (end < text.len && text.ptr[end] != '/' && text.ptr[end] != '?' && text.ptr[end] != '#')
        end++;
    struct slice authority = slice_of(text.ptr + at, end - at);
    if (memchr(authority.ptr, '@', authority.len) != NULL) {
        *why = "URL has a user name or password";
        return GW_EINVAL;
    }

    struct slice host = authority, port = SLICE_NONE;
    if (authority.len > 0 && authority.ptr[0] == '[') {
        const char *close = memchr(authority.ptr, ']', authority.len);
        if (close == NULL) {
            *why = "URL has a broken IPv6 address";
            return GW_EINVAL;
        }
        host.len = (size_t)(close - authority.ptr) + 1;
        struct slice rest = slice_from(authority, host.len);
        if (rest.len > 0) {
            if (rest.ptr[0] != ':') {
                *why = "URL has a broken IPv6 address";
                return GW_EINVAL;
            }
            port = slice_of(rest.ptr + 1, rest.len - 1);
        }
    } else {
        const char *colon = memchr(authority.ptr, ':', authority.len);
        if (colon != NULL) {
            host.len = (size_t)(colon - authority.ptr);
            port = slice_of(colon + 1, authority.len - host.len - 1);
        }
    }
    int err = parse_host(host, arena, &url->host, why);
    if (err)
        return err;
    url->port = url->is_tls ? 443 : 80;
    if (port.ptr != NULL) {
        url->has_port = true;
        if (parse_port(port, &url->port)) {
            *why = "URL has a bad port";
            return GW_EINVAL;
        }
    }

    struct slice path = slice_from(text, end), query = SLICE_NONE;
    err = check_path(path, why);
    if (err)
        return err;
    const char *mark = path.len ? memchr(path.ptr, '?', path.len) : NULL;
    if (mark != NULL) {
        query = slice_of(mark + 1, path.len - (size_t)(mark - path.ptr) - 1);
        path.len = (size_t)(mark - path.ptr);
    }
    url->path = path.len ? arena_copy(arena, path) : SLICE_LIT("/");
    if (query.ptr != NULL)
        url->query = query.len ? arena_copy(arena, query) : SLICE_LIT("");
    if (url->path.ptr == NULL || (query.ptr != NULL && url->query.ptr == NULL)) {
        *why = "out of memory";
        return GW_ENOMEM;
    }
    return 0;
}

static int parse_port(struct slice text, uint16_t *port)
{
    if (text.len == 0 || text.len > 5 || text.ptr[0] == '0')
        return GW_EINVAL;
    unsigned value = 0;
    for (size_t i = 0; i < text.len; i++) {
        if (!is_digit(text.ptr[i]))
            return GW_EINVAL;
        value = value * 10 + (unsigned)(text.ptr[i] - '0');
    }
    if (value > 65535)
        return GW_EINVAL;
    *port = (uint16_t)value;
    return 0;
}

// Four decimal numbers without leading zeros: the one form that every resolver reads alike.
static bool is_dotted_quad(struct slice text)
{
    size_t at = 0;
    for (int part = 0; part < 4; part++) {
        size_t start = at;
        unsigned value = 0;
        while (at < text.len && is_digit(text.ptr[at]) && at - start < 3)
            value = value * 10 + (unsigned)(text.ptr[at++] - '0');
        if (at == start || value > 255 || (at - start > 1 && text.ptr[start] == '0'))
            return false;
        if (part < 3 && (at >= text.len || text.ptr[at++] != '.'))
            return false;
    }
    return at == text.len;
}

// Whether an inet_aton-like reader could take a host ending in this label for a number.
static bool is_number_label(struct slice label)
{
    size_t at = 0;
    bool is_hex = label.len >= 2 && label.ptr[0] == '0' && lower(label.ptr[1]) == 'x';
    for (at = is_hex ? 2 : 0; at < label.len; at++) {
        if (is_hex ? hex_value(label.ptr[at]) < 0 : !is_digit(label.ptr[at]))
            return false;
    }
    return true;
}

static int parse_host(struct slice text, struct arena *arena, struct slice *host, const char **why)
{
    if (text.len == 0) {
        *why = "URL has no host";
        return GW_EINVAL;
    }
    char name[URL_MAX_HOST + 1];
    if (text.ptr[0] == '[') {
        struct in6_addr address;
        if (text.len < 4 || text.len > 48) {
            *why = "URL has a broken IPv6 address";
            return GW_EINVAL;
        }
        memcpy(name, text.ptr + 1, text.len - 2);
        name[text.len - 2] = '\0';
        if (memchr(name, '\0', text.len - 2) != NULL || inet_pton(AF_INET6, name, &address) != 1) {
            *why = "URL has a broken IPv6 address"; // zone ids as well: inet_pton reads none
            return GW_EINVAL;
        }
        char canonical[INET6_ADDRSTRLEN];
        inet_ntop(AF_INET6, &address, canonical, sizeof canonical);
        *host = arena_copy(arena, slice_str(canonical));
        return host->ptr ? 0 : GW_ENOMEM;
    }
    if (text.len > URL_MAX_HOST) {
        *why = "URL has a host name that is too long";
        return GW_EINVAL;
    }
    size_t label = 0;
    for (size_t i = 0; i <= text.len; i++) {
        char c = i < text.len ? text.ptr[i] : '.';
        if (c == '.') {
            size_t len = i - label;
            if (len == 0 || len > 63 || text.ptr[label] == '-' || text.ptr[i - 1] == '-') {
                *why = "URL has a malformed host name";
                return GW_EINVAL;
            }
            if (i < text.len)
                label = i + 1;
        } else if (!is_alpha(c) && !is_digit(c) && c != '-' && c != '_') {
            *why = (unsigned char)c >= 0x80 ? "URL has a host name that is not ASCII"
                                            : "URL has a malformed host name";
            return GW_EINVAL;
        }
        if (i < text.len)
            name[i] = lower(c);
    }
    struct slice lowered = slice_of(name, text.len);
    if (is_number_label(slice_from(lowered, label)) && !is_dotted_quad(lowered)) {
        *why = "URL has an IPv4 address in an odd form";
        return GW_EINVAL;
    }
    *host = arena_copy(arena, lowered);
    return host->ptr ? 0 : GW_ENOMEM;
}

// ---- joining

int url_join(struct slice base, struct slice path, struct slice query, struct arena *arena,
             struct slice *out)
{
    struct url url;
    const char *why;
    int err = url_parse(base, arena, &url, &why);
    if (err)
        return err;
    if ((path.len > 0 && path.ptr[0] != '/') || path.len + query.len > URL_MAX_LEN)
        return GW_EINVAL;
    if (check_path(path, &why) || check_path(query, &why) ||
        (path.len && memchr(path.ptr, '?', path.len) != NULL))
        return GW_EINVAL;
    struct slice head = url.path;
    if (path.len > 0) {
        while (head.len > 0 && head.ptr[head.len - 1] == '/')
            head.len--;
        if (slice_ends(head, "/v1") && (slice_starts(path, "/v1/") || slice_is(path, "/v1")))
            head.len -= 3;
    }
    char digits[8];
    size_t from = sizeof digits;
    if (url.has_port) {
        for (unsigned rest = url.port; rest || from == sizeof digits; rest /= 10)
            digits[--from] = (char)('0' + rest % 10);
        digits[--from] = ':';
    }
    bool is_v6 = memchr(url.host.ptr, ':', url.host.len) != NULL;
    bool has_base_query = url.query.len > 0, has_query = query.len > 0;
    const struct slice parts[] = {
        url.is_tls ? SLICE_LIT("https://") : SLICE_LIT("http://"),
        slice_of("[", is_v6),
        url.host,
        slice_of("]", is_v6),
        slice_of(digits + from, sizeof digits - from),
        head,
        path,
        slice_of("?", has_base_query || has_query),
        url.query,
        slice_of("&", has_base_query && has_query),
        query,
    };
    *out = arena_join(arena, parts, sizeof parts / sizeof *parts);
    return out->ptr ? 0 : GW_ENOMEM;
}

// ---- address rules

struct net4 {
    uint32_t net;
    uint8_t bits;
};

static const struct net4 private4[] = {
    {0x00000000, 8},  // this network
    {0x0a000000, 8},  // private
    {0x64400000, 10}, // CGNAT
    {0x7f000000, 8},  // loopback
    {0xa9fe0000, 16}, // link-local, cloud metadata
    {0xac100000, 12}, // private
    {0xc0000000, 24}, // IETF protocol assignments
    {0xc0000200, 24}, // documentation
    {0xc0586300, 24}, // 6to4 relay anycast
    {0xc0a80000, 16}, // private
    {0xc6120000, 15}, // benchmarks
    {0xc6336400, 24}, // documentation
    {0xcb007100, 24}, // documentation
    {0xe0000000, 4},  // multicast
    {0xf0000000, 4},  // reserved, broadcast
};

static bool is_private4(uint32_t address)
{
    for (size_t i = 0; i < sizeof private4 / sizeof private4[0]; i++) {
        if ((address >> (32 - private4[i].bits)) == (private4[i].net >> (32 - private4[i].bits)))
            return true;
    }
    return false;
}

// Only 2000::/3 is global unicast, so mapped, compatible, NAT64, ULA, link-local and multicast
// forms all fall outside it; what tunnels IPv4 inside it (Teredo, 6to4) and the documentation
// blocks are named.
static bool is_private6(const uint8_t *a)
{
    if ((a[0] & 0xe0) != 0x20)
        return true;
    if (a[0] == 0x20 && a[1] == 0x01 && (a[2] & 0xfe) == 0x00) // 2001::/23: Teredo, ORCHID …
        return true;
    if (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0x0d && a[3] == 0xb8) // documentation
        return true;
    if (a[0] == 0x20 && a[1] == 0x02) // 6to4
        return true;
    return a[0] == 0x3f && a[1] == 0xff && (a[2] & 0xf0) == 0x00; // documentation
}

bool url_address_is_private(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return is_private4(
            ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr));
    if (address->sa_family == AF_INET6)
        return is_private6(((const struct sockaddr_in6 *)(const void *)address)->sin6_addr.s6_addr);
    return true;
}

bool url_port_is_denied(uint16_t port)
{
    // The ports that browsers block (mail, ssh, ftp, irc, printing, …) and those of databases,
    // caches, queues, container and cluster control.
    static const uint16_t denied[] = {
        0,     1,     7,     9,     11,    13,    15,    17,   19,   20,   21,   22,   23,    25,
        37,    42,    43,    53,    69,    77,    79,    87,   95,   101,  102,  103,  104,   109,
        110,   111,   113,   115,   117,   119,   123,   135,  137,  138,  139,  143,  161,   162,
        179,   389,   427,   445,   465,   512,   513,   514,  515,  526,  530,  531,  532,   540,
        548,   554,   556,   563,   587,   601,   636,   873,  989,  990,  993,  995,  1433,  1434,
        1521,  1719,  1720,  1723,  2049,  2181,  2375,  2376, 2379, 2380, 3306, 3389, 3659,  4045,
        4190,  5060,  5061,  5432,  5433,  5672,  5900,  5984, 6000, 6379, 6380, 6432, 6566,  6665,
        6666,  6667,  6668,  6669,  6697,  7000,  7001,  9042, 9092, 9160, 9200, 9300, 10080, 10250,
        11211, 15672, 26379, 27017, 27018, 27019, 50000,
    };
    for (size_t i = 0; i < sizeof denied / sizeof denied[0]; i++) {
        if (denied[i] == port)
            return true;
    }
    return false;
}

struct rule {
    struct slice host; // a name; ptr NULL for an address rule
    int family;
    uint8_t address[16];
    unsigned bits;
    bool has_port;
    uint16_t port;
};

static int parse_rule(struct slice text, struct rule *rule)
{
    *rule = (struct rule){0};
    if (text.len == 0 || text.len > URL_MAX_HOST + 10)
        return GW_EINVAL;
    struct slice host = text, rest;
    if (text.ptr[0] == '[') {
        const char *close = memchr(text.ptr, ']', text.len);
        if (close == NULL)
            return GW_EINVAL;
        host = slice_of(text.ptr + 1, (size_t)(close - text.ptr) - 1);
        rest = slice_from(text, host.len + 2);
        rule->family = AF_INET6;
    } else {
        size_t at = 0;
        while (at < text.len && text.ptr[at] != '/' && text.ptr[at] != ':')
            at++;
        host.len = at;
        rest = slice_from(text, at);
        if (is_dotted_quad(host))
            rule->family = AF_INET;
    }
    if (rule->family != 0) {
        char name[INET6_ADDRSTRLEN + 1];
        if (host.len >= sizeof name || memchr(host.ptr, '\0', host.len) != NULL)
            return GW_EINVAL;
        memcpy(name, host.ptr, host.len);
        name[host.len] = '\0';
        if (inet_pton(rule->family, name, rule->address) != 1)
            return GW_EINVAL;
        rule->bits = rule->family == AF_INET ? 32 : 128;
    } else {
        // Borrow the host parser's strictness without its copy.
        struct arena *scratch = arena_new(512);
        const char *why;
        struct slice ignored;
        if (scratch == NULL)
            return GW_ENOMEM;
        int err = parse_host(host, scratch, &ignored, &why);
        arena_free(scratch);
        if (err)
            return GW_EINVAL;
        rule->host = host;
    }
    if (rest.len > 0 && rest.ptr[0] == '/') {
        unsigned bits = 0;
        size_t at = 1;
        while (at < rest.len && is_digit(rest.ptr[at]) && at < 4)
            bits = bits * 10 + (unsigned)(rest.ptr[at++] - '0');
        if (rule->family == 0 || at == 1 || bits > rule->bits)
            return GW_EINVAL;
        rule->bits = bits;
        rest = slice_from(rest, at);
    }
    if (rest.len > 0) {
        if (rest.ptr[0] != ':' || parse_port(slice_from(rest, 1), &rule->port))
            return GW_EINVAL;
        rule->has_port = true;
    }
    return 0;
}

int url_rule_check(struct slice rule)
{
    struct rule parsed;
    return parse_rule(rule, &parsed);
}

static bool bits_match(const uint8_t *a, const uint8_t *b, unsigned bits)
{
    unsigned whole = bits / 8, left = bits % 8;
    if (memcmp(a, b, whole) != 0)
        return false;
    return left == 0 || ((a[whole] ^ b[whole]) >> (8 - left)) == 0;
}

bool url_rule_matches(struct slice text, struct slice host, uint16_t port,
                      const struct sockaddr *address)
{
    struct rule rule;
    if (parse_rule(text, &rule) || (rule.has_port && rule.port != port))
        return false;
    if (rule.host.ptr != NULL)
        return rule.host.len == host.len && strncasecmp(rule.host.ptr, host.ptr, host.len) == 0;
    if (address == NULL)
        return false;
    if (address->sa_family == AF_INET && rule.family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)address;
        return bits_match(rule.address, (const uint8_t *)&v4->sin_addr, rule.bits);
    }
    if (address->sa_family == AF_INET6) {
        const uint8_t *bytes =
            ((const struct sockaddr_in6 *)(const void *)address)->sin6_addr.s6_addr;
        static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
        if (rule.family == AF_INET6)
            return bits_match(rule.address, bytes, rule.bits);
        return memcmp(bytes, mapped, 12) == 0 && bits_match(rule.address, bytes + 12, rule.bits);
    }
    return false;
}

// ---- percent-encoding and queries

int url_decode(struct slice text, bool is_form, struct arena *arena, struct slice *out)
{
    char *to = arena_alloc(arena, text.len + 1);
    if (to == NULL)
        return GW_ENOMEM;
    size_t len = 0;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (c == '+' && is_form) {
            c = ' ';
        } else if (c == '%') {
            int high = i + 2 < text.len ? hex_value(text.ptr[i + 1]) : -1;
            int low = i + 2 < text.len ? hex_value(text.ptr[i + 2]) : -1;
            if (high < 0 || low < 0 || (high == 0 && low == 0))
                return GW_EINVAL; // broken, or a NUL that would cut the value somewhere
            c = (char)(high * 16 + low);
            i += 2;
        }
        to[len++] = c;
    }
    to[len] = '\0';
    *out = slice_of(to, len);
    return 0;
}

struct slice url_encode(struct slice text, struct arena *arena)
{
    static const char digits[] = "0123456789ABCDEF";
    if (text.len > SIZE_MAX / 4)
        return SLICE_NONE;
    char *to = arena_alloc(arena, text.len * 3 + 1);
    if (to == NULL)
        return SLICE_NONE;
    size_t len = 0;
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (is_alpha((char)c) || is_digit((char)c) || (c != 0 && strchr("-._~", c) != NULL)) {
            to[len++] = (char)c;
        } else {
            to[len++] = '%';
            to[len++] = digits[c >> 4];
            to[len++] = digits[c & 15];
        }
    }
    to[len] = '\0';
    return slice_of(to, len);
}

bool url_query_next(struct slice *query, struct slice *name, struct slice *value)
{
    while (query->len > 0) {
        const char *amp = memchr(query->ptr, '&', query->len);
        size_t len = amp ? (size_t)(amp - query->ptr) : query->len;
        struct slice pair = slice_of(query->ptr, len);
        *query = slice_from(*query, amp ? len + 1 : len);
        if (len == 0)
            continue;
        const char *equals = memchr(pair.ptr, '=', pair.len);
        *name = pair;
        *value = slice_of(pair.ptr + pair.len, 0);
        if (equals != NULL) {
            name->len = (size_t)(equals - pair.ptr);
            *value = slice_from(pair, name->len + 1);
        }
        return true;
    }
    return false;
}

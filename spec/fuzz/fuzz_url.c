// Any text as a URL, a rule, a query and an encoded value. What parses must mean one host only
// (inet_aton, the most lenient reader, must not see another address in it) and must parse to the
// same again after it is put together.
#include "codec/url.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition, const char *what, struct slice input)
{
    if (condition)
        return;
    fprintf(stderr, "url: %s: %.*s\n", what, SLICE_FMT(input));
    abort();
}

static void check_parsed(const struct url *url, struct arena *arena, struct slice input)
{
    require(url->host.len > 0 && url->host.len <= 253 && url->port != 0, "host or port", input);
    require(url->path.len > 0 && url->path.ptr[0] == '/', "path", input);
    char host[254];
    struct in_addr lenient, strict;
    memcpy(host, url->host.ptr, url->host.len);
    host[url->host.len] = '\0';
    if (inet_aton(host, &lenient))
        require(inet_pton(AF_INET, host, &strict) == 1 && strict.s_addr == lenient.s_addr,
                "an address in an odd form", input);
    struct slice again;
    struct url other;
    if (url_join(input, SLICE_NONE, SLICE_NONE, arena, &again) != 0)
        return; // nothing that parses is refused but for its size
    require(url_parse(again, arena, &other, NULL) == 0, "does not parse again", input);
    require(slice_eq(url->host, other.host) && url->port == other.port &&
                url->is_tls == other.is_tls && slice_eq(url->path, other.path) &&
                url->query.len == other.query.len,
            "means something else", input);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena *arena = arena_new(4096);
    struct slice input = slice_of((const char *)data, size), out, name, value;
    struct url url;
    if (url_parse(input, arena, &url, NULL) == 0)
        check_parsed(&url, arena, input);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001)};
    bool is_valid = url_rule_check(input) == 0;
    bool matches = url_rule_matches(input, SLICE_LIT("a"), 80, (struct sockaddr *)&address);
    require(is_valid || !matches, "a rule that is none matches", input);
    struct slice encoded = url_encode(input, arena);
    bool has_nul = size > 0 && memchr(data, 0, size) != NULL;
    if (encoded.ptr != NULL)
        require(url_decode(encoded, true, arena, &out) == (has_nul ? GW_EINVAL : 0) &&
                    (has_nul || slice_eq(out, input)),
                "encoding", input);
    (void)!url_decode(input, true, arena, &out);
    size_t total = 0;
    for (out = input; url_query_next(&out, &name, &value);)
        total += name.len + value.len;
    require(total <= size, "query", input);
    arena_free(arena);
    return 0;
}

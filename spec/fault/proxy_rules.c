// Rules in words, as proxy.h tells them.
#include "proxy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

uint64_t fault_random(uint64_t *state) // splitmix64
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// A whole number; moves *at behind it.
static bool read_number(const char **at, uint64_t *out)
{
    char *end;
    if (**at < '0' || **at > '9')
        return false;
    errno = 0;
    *out = strtoull(*at, &end, 10);
    *at = end;
    return errno == 0;
}

static bool read_small(const char **at, int *out)
{
    uint64_t number;
    if (!read_number(at, &number) || number > 86400000)
        return false;
    *out = (int)number;
    return true;
}

// ",number" if there is one.
static bool read_more(const char **at, int *out)
{
    if (**at != ',')
        return true;
    ++*at;
    return read_small(at, out);
}

static int nibble(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool read_hex(const char **at, struct fault_bytes *out)
{
    out->len = 0;
    while (nibble((*at)[0]) >= 0 && nibble((*at)[1]) >= 0) {
        if (out->len == PROXY_INSERT_MAX)
            return false;
        out->bytes[out->len++] = (char)(nibble((*at)[0]) << 4 | nibble((*at)[1]));
        *at += 2;
    }
    return true;
}

static bool takes(const char **at, const char *word)
{
    size_t len = strlen(word);
    if (strncmp(*at, word, len) != 0)
        return false;
    *at += len;
    return true;
}

static bool read_end(const char **at, struct fault_rules *rules, enum fault_end end)
{
    rules->end = end;
    rules->end_ms = end == FAULT_RESET ? 30 : 0; // what was sent before should arrive
    return read_number(at, &rules->end_at) && read_more(at, &rules->end_ms);
}

static bool read_direction(const char **at, struct fault_rules *rules)
{
    int slice = 0;
    if (takes(at, "latency="))
        return read_small(at, &rules->latency_ms) && read_more(at, &rules->jitter_ms);
    if (takes(at, "bandwidth="))
        return read_number(at, &rules->bytes_per_second) && rules->bytes_per_second > 0;
    if (takes(at, "slice=")) {
        bool is_good = read_small(at, &slice) && slice > 0 && read_more(at, &rules->slice_ms);
        rules->slice = (size_t)slice;
        return is_good;
    }
    if (takes(at, "slow_close="))
        return read_small(at, &rules->slow_close_ms);
    if (takes(at, "timeout="))
        return read_end(at, rules, FAULT_HANG);
    if (takes(at, "reset="))
        return read_end(at, rules, FAULT_RESET);
    if (takes(at, "limit="))
        return read_end(at, rules, FAULT_CLOSE);
    if (takes(at, "half_close="))
        return read_end(at, rules, FAULT_HALF);
    if (takes(at, "garbage="))
        return read_number(at, &rules->insert_at) && takes(at, ",") &&
               read_number(at, &rules->garbage_count) && rules->garbage_count <= PROXY_INSERT_MAX;
    if (takes(at, "insert="))
        return read_number(at, &rules->insert_at) && takes(at, ",") && read_hex(at, &rules->insert);
    if (takes(at, "flip="))
        return read_number(at, &rules->flip_at) && takes(at, ",") &&
               read_number(at, &rules->flip_count);
    return false;
}

static bool read_word(const char **at, struct fault_plan *plan)
{
    if (takes(at, "up."))
        return read_direction(at, &plan->up);
    if (takes(at, "down."))
        return read_direction(at, &plan->down);
    if (takes(at, "seed="))
        return read_number(at, &plan->seed);
    if (takes(at, "answer=")) {
        plan->server = FAULT_ANSWER;
        if (!read_hex(at, &plan->answer) || !takes(at, ","))
            return false;
        plan->answer_end = takes(at, "close")   ? FAULT_CLOSE
                           : takes(at, "hang")  ? FAULT_HANG
                           : takes(at, "reset") ? FAULT_RESET
                                                : FAULT_NONE;
        return plan->answer_end != FAULT_NONE;
    }
    enum fault_server server = takes(at, "mute")   ? FAULT_MUTE
                               : takes(at, "drop") ? FAULT_DROP
                               : takes(at, "rst")  ? FAULT_RST
                                                   : FAULT_SERVER_ASKED;
    plan->server = server;
    return server != FAULT_SERVER_ASKED;
}

const char *fault_plan_read(const char *text, struct fault_plan *out)
{
    memset(out, 0, sizeof *out);
    out->seed = 1;
    for (const char *at = text; *at;) {
        if (*at == ' ') {
            at++;
            continue;
        }
        if (!read_word(&at, out) || (*at && *at != ' '))
            return "a rule is not understood";
    }
    return NULL;
}

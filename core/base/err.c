// Names of error codes and what happens when an assertion fails.
#include "base/err.h"
#include "base/log.h"
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PLACES 512 // power of two; once full, further places are logged each time

const char *gw_err_name(int err)
{
    switch (err) {
    case GW_OK: return "ok";
    case GW_EINTERNAL: return "internal error";
    case GW_ENOMEM: return "out of memory";
    case GW_EINVAL: return "invalid input";
    case GW_ETOOBIG: return "too big";
    case GW_EAGAIN: return "try again";
    case GW_ENOTFOUND: return "not found";
    case GW_EEXISTS: return "exists already";
    case GW_EDENIED: return "denied";
    case GW_ECANCELLED: return "cancelled";
    case GW_ETIMEOUT: return "timeout";
    case GW_ECONNECT: return "connection refused";
    case GW_ERESET: return "connection reset";
    case GW_ETLS: return "tls failure";
    case GW_EDNS: return "name not resolved";
    case GW_EPROTO: return "protocol error";
    case GW_EIO: return "i/o error";
    case GW_EFULL: return "full";
    case GW_EBUSY: return "busy";
    case GW_ECORRUPT: return "corrupt data";
    default: return "unknown error";
    }
}

void gw_require_failed(const char *cond, const char *file, int line)
{
    // Not through the log thread: the process ends here, and its state cannot be trusted.
    char text[512];
    int len =
        snprintf(text, sizeof(text), "moongate: %s:%d: requirement failed: %s\n", file, line, cond);
    if (len > (int)sizeof(text) - 1)
        len = (int)sizeof(text) - 1;
    if (len > 0 && write(STDERR_FILENO, text, (size_t)len) < 0)
        abort();
    abort();
}

// True for the first caller from a place.
static bool is_first_at(const char *file, int line)
{
    static _Atomic uint64_t places[PLACES];
    uint64_t key = ((uint64_t)(uintptr_t)file << 16) ^ (uint64_t)(uint32_t)line;
    key = key ? key : 1;
    size_t start = (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 40);
    for (size_t i = 0; i < PLACES; i++) {
        uint64_t seen = 0;
        if (atomic_compare_exchange_strong(&places[(start + i) % PLACES], &seen, key))
            return true;
        if (seen == key)
            return false;
    }
    return true;
}

bool gw_unexpected_seen(const char *cond, const char *file, int line)
{
    if (is_first_at(file, line))
        log_event(LOG_ERROR, "unexpected", LOG_STR("condition", cond), LOG_STR("file", file),
                  LOG_INT("line", line));
    return true;
}

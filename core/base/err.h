#pragma once
// Error codes and the three grades of assertion, for every floor.
//
// A function that can fail returns int: 0 (GW_OK) or a negative GW_E… value. Peers' mistakes are
// errors. Our own mistakes are assertions: gw_require when going on would corrupt money, memory or
// another exchange; gw_unexpected when only the exchange at hand has to die.
// Any thread.
#include <stdbool.h>

#define GW_MUSTCHECK __attribute__((warn_unused_result))

enum gw_err {
    GW_OK = 0,
    GW_EINTERNAL = -1, // our mistake, contained
    GW_ENOMEM = -2,    // allocation failed or a memory cap was reached
    GW_EINVAL = -3,    // malformed or out-of-range input
    GW_ETOOBIG = -4,   // input above its cap
    GW_EAGAIN = -5,    // more input, or a later try, is needed
    GW_ENOTFOUND = -6,
    GW_EEXISTS = -7,
    GW_EDENIED = -8, // a capability, address or authorisation check refused
    GW_ECANCELLED = -9,
    GW_ETIMEOUT = -10,
    GW_ECONNECT = -11, // connection refused or unreachable
    GW_ERESET = -12,   // connection closed or reset by the peer in the middle
    GW_ETLS = -13,
    GW_EDNS = -14,
    GW_EPROTO = -15, // the peer broke its protocol
    GW_EIO = -16,    // disk or descriptor failure
    GW_EFULL = -17,  // a bounded queue, budget or disk is full
    GW_EBUSY = -18,
    GW_ECORRUPT = -19, // stored data failed its check
};

// Gives the constant short name of a code ("timeout", "connection refused"); never NULL.
const char *gw_err_name(int err);

// Aborts the process with file:line when the condition is false; stays on in release builds.
#define gw_require(cond) ((cond) ? (void)0 : gw_require_failed(#cond, __FILE__, __LINE__))
// True (and logged once per place) when the condition, one that should never hold, holds.
#define gw_unexpected(cond) ((cond) ? gw_unexpected_seen(#cond, __FILE__, __LINE__) : false)

_Noreturn void gw_require_failed(const char *cond, const char *file, int line);
bool gw_unexpected_seen(const char *cond, const char *file, int line);

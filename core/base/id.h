#pragma once
// Exchange ids and request ids. An exchange id is a UUIDv7 (48 bits of wall ms, then random): 128
// bits, ordered by time, so log rows need no random unique column. It is the settlement key; a
// client's x-request-id is logged and echoed, never a key. Any thread.
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

struct gw_id {
    uint8_t bytes[16];
};

GW_MUSTCHECK int id_new(struct gw_id *id);        // UUIDv7 (RFC 9562)
GW_MUSTCHECK int id_new_random(struct gw_id *id); // UUIDv4
// 36 characters and a NUL.
void id_format(const struct gw_id *id, char out[37]);
GW_MUSTCHECK int id_parse(struct slice text, struct gw_id *id);
int64_t id_wall_ms(const struct gw_id *id); // of a UUIDv7

// Ids. Randomness is fetched in batches per thread: one id per request costs no system call. Ids of
// one thread rise strictly: within a millisecond the 12 bits after the time count up from a random
// start (RFC 9562 §6.2, method 1).
#include "base/id.h"
#include "base/clock.h"
#include <string.h>

#define BATCH 1024
#define BACK_MS 1000 // a clock set back by more than this is followed

struct id_state {
    uint32_t generation; // of the clock source the rest came from
    size_t left;
    int64_t last_ms;
    uint16_t counter;
    uint8_t pool[BATCH];
};
static _Thread_local struct id_state state;

static int take_random(struct id_state *own, void *out, size_t len)
{
    uint32_t generation = clock_generation();
    if (own->generation != generation) {
        own->generation = generation;
        own->left = 0;
        own->last_ms = INT64_MIN / 2;
    }
    if (own->left < len) {
        own->left = 0;
        int err = clock_random(own->pool, sizeof(own->pool));
        if (err)
            return err;
        own->left = sizeof(own->pool);
    }
    own->left -= len;
    memcpy(out, own->pool + own->left, len);
    return 0;
}

int id_new(struct gw_id *id)
{
    struct id_state *own = &state;
    uint8_t random[10];
    int err = take_random(own, random, sizeof(random));
    if (err)
        return err;
    int64_t now = clock_wall_ms();
    if (now > own->last_ms || now < own->last_ms - BACK_MS) {
        own->last_ms = now;
        own->counter = (uint16_t)((random[8] << 8 | random[9]) & 0x7ff);
    } else if (++own->counter > 0xfff) {
        own->last_ms++;
        own->counter = (uint16_t)((random[8] << 8 | random[9]) & 0x7ff);
    }
    uint64_t ms = (uint64_t)own->last_ms;
    for (int i = 0; i < 6; i++)
        id->bytes[i] = (uint8_t)(ms >> (40 - 8 * i));
    id->bytes[6] = (uint8_t)(0x70 | own->counter >> 8);
    id->bytes[7] = (uint8_t)own->counter;
    memcpy(id->bytes + 8, random, 8);
    id->bytes[8] = (uint8_t)((id->bytes[8] & 0x3f) | 0x80);
    return 0;
}

int id_new_random(struct gw_id *id)
{
    int err = take_random(&state, id->bytes, sizeof(id->bytes));
    if (err)
        return err;
    id->bytes[6] = (uint8_t)((id->bytes[6] & 0x0f) | 0x40);
    id->bytes[8] = (uint8_t)((id->bytes[8] & 0x3f) | 0x80);
    return 0;
}

static bool is_dash_at(int byte)
{
    return byte == 4 || byte == 6 || byte == 8 || byte == 10;
}

void id_format(const struct gw_id *id, char out[37])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        if (is_dash_at(i))
            *out++ = '-';
        *out++ = digits[id->bytes[i] >> 4];
        *out++ = digits[id->bytes[i] & 15];
    }
    *out = '\0';
}

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    digit |= 0x20;
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

int id_parse(struct slice text, struct gw_id *id)
{
    struct gw_id read;
    if (text.len != 36)
        return GW_EINVAL;
    const char *at = text.ptr;
    for (int i = 0; i < 16; i++) {
        if (is_dash_at(i) && *at++ != '-')
            return GW_EINVAL;
        int high = hex_value(at[0]), low = hex_value(at[1]);
        if (high < 0 || low < 0)
            return GW_EINVAL;
        read.bytes[i] = (uint8_t)(high << 4 | low);
        at += 2;
    }
    *id = read;
    return 0;
}

int64_t id_wall_ms(const struct gw_id *id)
{
    uint64_t ms = 0;
    for (int i = 0; i < 6; i++)
        ms = ms << 8 | id->bytes[i];
    return (int64_t)ms;
}

// Hides registered secrets in log lines. Keys of one provider begin alike and end at random, so a
// secret is found by its last eight bytes: a bitmap of their hashes answers for nearly every
// position of a line, however many secrets there are.
#include "base/log_parts.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 4096u // power of two

struct secret {
    struct secret *next;
    uint64_t tail;
    uint32_t hash;       // 16 bits
    uint32_t refs;       // registrations as it is or as an escaped form
    uint32_t plain_refs; // of these, as it is
    size_t len;
    char bytes[];
};

struct range {
    size_t start, end;
};

struct secret_table {
    uint64_t bits[65536 / 64];
    struct secret *buckets[BUCKETS];
    size_t form_count, plain_count;
    struct range *ranges; // of the line being filtered
    size_t range_room;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct secret_table *table;
static atomic_bool has_secrets;

static uint64_t load_tail(const char *end)
{
    uint64_t tail;
    memcpy(&tail, end - sizeof(tail), sizeof(tail));
    return tail;
}

static uint32_t hash_tail(uint64_t tail)
{
    return (uint32_t)((tail * UINT64_C(0x9e3779b97f4a7c15)) >> 48);
}

static struct secret **find_secret(struct slice bytes)
{
    uint64_t tail = load_tail(bytes.ptr + bytes.len);
    struct secret **at = &table->buckets[hash_tail(tail) % BUCKETS];
    while (*at && !((*at)->tail == tail && slice_eq(slice_of((*at)->bytes, (*at)->len), bytes)))
        at = &(*at)->next;
    return at;
}

static int add_form(struct slice bytes, bool is_plain)
{
    struct secret **at = find_secret(bytes);
    struct secret *secret = *at;
    if (!secret) {
        secret = calloc(1, sizeof(*secret) + bytes.len);
        if (!secret)
            return GW_ENOMEM;
        secret->tail = load_tail(bytes.ptr + bytes.len);
        secret->hash = hash_tail(secret->tail);
        secret->len = bytes.len;
        memcpy(secret->bytes, bytes.ptr, bytes.len);
        table->bits[secret->hash / 64] |= UINT64_C(1) << secret->hash % 64;
        table->form_count++;
        *at = secret;
    }
    secret->refs++;
    if (is_plain && secret->plain_refs++ == 0)
        table->plain_count++;
    return 0;
}

static void drop_form(struct slice bytes, bool is_plain)
{
    struct secret **at = find_secret(bytes);
    struct secret *secret = *at;
    if (!secret)
        return;
    if (is_plain && --secret->plain_refs == 0)
        table->plain_count--;
    if (--secret->refs > 0)
        return;
    *at = secret->next;
    struct secret *other = table->buckets[secret->hash % BUCKETS];
    while (other && other->hash != secret->hash)
        other = other->next;
    if (!other)
        table->bits[secret->hash / 64] &= ~(UINT64_C(1) << secret->hash % 64);
    explicit_bzero(secret, sizeof(*secret) + secret->len);
    free(secret);
    table->form_count--;
}

static void release_if_empty(void)
{
    if (table && table->form_count == 0) {
        free(table->ranges);
        free(table);
        table = NULL;
    }
    atomic_store(&has_secrets, table != NULL);
}

// A secret can stand in a line as it is, as our encoder escapes it, or with "\/" for "/", as others
// do. Gives the number of forms; the first is the secret itself.
static int make_forms(struct slice secret, struct buf escaped[2], struct slice forms[3])
{
    int count = 0;
    forms[count++] = secret;
    // Made to size first: outgrown memory is not wiped.
    buf_init(&escaped[0], 0);
    buf_init(&escaped[1], 0);
    if (!buf_room(&escaped[0], secret.len * 6 + 1) || log_escape(&escaped[0], secret) != 0)
        return GW_ENOMEM;
    struct slice plain = buf_slice(&escaped[0]);
    if (!slice_eq(plain, secret))
        forms[count++] = plain;
    if (plain.len && memchr(plain.ptr, '/', plain.len)) {
        char *out = buf_room(&escaped[1], plain.len * 2);
        if (!out)
            return GW_ENOMEM;
        size_t len = 0;
        for (size_t i = 0; i < plain.len; i++) {
            if (plain.ptr[i] == '/')
                out[len++] = '\\';
            out[len++] = plain.ptr[i];
        }
        buf_grew(&escaped[1], len);
        forms[count++] = buf_slice(&escaped[1]);
    }
    return count;
}

int log_hide_secret(struct slice secret)
{
    if (secret.len < LOG_SECRET_MIN || secret.len > LOG_SECRET_MAX)
        return GW_EINVAL;
    struct buf escaped[2];
    struct slice forms[3];
    int count = make_forms(secret, escaped, forms);
    int err = count < 0 ? count : 0;
    pthread_mutex_lock(&mutex);
    if (!err && !table)
        table = calloc(1, sizeof(*table));
    if (!err && !table)
        err = GW_ENOMEM;
    if (!err && table->plain_count >= LOG_SECRET_COUNT) {
        struct secret *known = *find_secret(secret);
        if (!known || known->plain_refs == 0)
            err = GW_EFULL;
    }
    for (int i = 0; !err && i < count; i++) {
        err = add_form(forms[i], i == 0);
        for (int k = i - 1; err && k >= 0; k--)
            drop_form(forms[k], k == 0);
    }
    release_if_empty();
    pthread_mutex_unlock(&mutex);
    buf_wipe(&escaped[0]);
    buf_wipe(&escaped[1]);
    return err;
}

void log_forget_secret(struct slice secret)
{
    if (secret.len < LOG_SECRET_MIN || secret.len > LOG_SECRET_MAX)
        return;
    struct buf escaped[2];
    struct slice forms[3];
    int count = make_forms(secret, escaped, forms);
    pthread_mutex_lock(&mutex);
    // Without memory for the escaped forms the secret stays hidden.
    struct secret *known = table && count > 0 ? *find_secret(secret) : NULL;
    if (known && known->plain_refs > 0) {
        for (int i = 0; i < count; i++)
            drop_form(forms[i], i == 0);
    }
    release_if_empty();
    pthread_mutex_unlock(&mutex);
    buf_wipe(&escaped[0]);
    buf_wipe(&escaped[1]);
}

// Adds a match; those that overlap become one, so that no tail of a longer secret stays visible.
// Ends arrive in rising order.
static int add_range(size_t *count, size_t start, size_t end)
{
    while (*count > 0 && table->ranges[*count - 1].end > start) {
        --*count;
        if (table->ranges[*count].start < start)
            start = table->ranges[*count].start;
    }
    if (*count == table->range_room) {
        size_t room = table->range_room ? table->range_room * 2 : 16;
        struct range *ranges = realloc(table->ranges, room * sizeof(*ranges));
        if (!ranges)
            return GW_ENOMEM;
        table->ranges = ranges;
        table->range_room = room;
    }
    table->ranges[(*count)++] = (struct range){start, end};
    return 0;
}

static int find_ranges(struct slice line, size_t *count)
{
    for (size_t end = LOG_SECRET_MIN; end <= line.len; end++) {
        uint64_t tail = load_tail(line.ptr + end);
        uint32_t hash = hash_tail(tail);
        if (!(table->bits[hash / 64] >> hash % 64 & 1))
            continue;
        for (struct secret *s = table->buckets[hash % BUCKETS]; s; s = s->next) {
            if (s->tail != tail || s->len > end ||
                memcmp(line.ptr + end - s->len, s->bytes, s->len) != 0)
                continue;
            int err = add_range(count, end - s->len, end);
            if (err)
                return err;
        }
    }
    return 0;
}

int log_hide_in(struct slice line, struct buf *out)
{
    size_t count = 0, at = 0, before = out->len;
    int err = 0;
    if (!atomic_load(&has_secrets))
        return buf_append(out, line);
    pthread_mutex_lock(&mutex);
    if (table)
        err = find_ranges(line, &count);
    for (size_t i = 0; !err && i < count; i++) {
        err = buf_append(out, slice_of(line.ptr + at, table->ranges[i].start - at));
        if (!err)
            err = buf_append_str(out, "[secret]");
        at = table->ranges[i].end;
    }
    if (!err)
        err = buf_append(out, slice_from(line, at));
    pthread_mutex_unlock(&mutex);
    if (err)
        buf_truncate(out, before);
    return err;
}

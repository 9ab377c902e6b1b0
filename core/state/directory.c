// Three striped hash tables of immutable entries: keys by hash, keys by id, users by id. Readers
// probe without a lock inside an epoch; a place holds NULL (never used), DROPPED or an entry, and
// changes by one atomic store. Writers come from one lane, so they share one mutex; tables grow per
// stripe, which keeps each rehash short. Replaced entries and tables are retired to the epoch.
#include "state/directory.h"
#include "base/id.h"
#include "state/directory_memory.h"
#include <pthread.h>
#include <stdlib.h>

#define STRIPES 256
#define CAPACITY_MIN 16
#define DROPPED ((void *)1)
#define LIST_MAX UINT16_MAX

struct table {
    size_t capacity; // power of two
    size_t used;     // places not NULL (dropped ones too); writer's
    _Atomic(void *) places[];
};

struct stripe {
    _Atomic(struct table *) table;
    size_t count; // living entries; writer's
};

enum index_kind { BY_HASH, BY_KEY_ID, BY_USER_ID };

struct index {
    enum index_kind kind;
    struct stripe stripes[STRIPES];
};

struct directory {
    struct epoch *epoch;
    struct directory_memory *memory;
    pthread_mutex_t mutex; // writers
    atomic_size_t key_count;
    struct directory_work work;
    struct index by_hash, by_key_id, by_user_id;
};

static uint64_t mix(int64_t id)
{
    uint64_t x = (uint64_t)id + UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

// A SHA-256 is as even as a hash can be, and nobody chooses the keys that are stored here.
static uint64_t head(const struct sha256 *hash)
{
    uint64_t value;
    memcpy(&value, hash->bytes, sizeof(value));
    return value;
}

static uint64_t hash_of(enum index_kind kind, const void *entry)
{
    switch (kind) {
    case BY_HASH: return head(&((const struct key_entry *)entry)->hash);
    case BY_KEY_ID: return mix(((const struct key_entry *)entry)->id);
    default: return mix(((const struct user_entry *)entry)->id);
    }
}

static bool is_same(enum index_kind kind, const void *entry, const struct sha256 *hash, int64_t id)
{
    const struct key_entry *key = entry;
    switch (kind) {
    case BY_HASH:
        return secret_equal(slice_of((const char *)key->hash.bytes, 32),
                            slice_of((const char *)hash->bytes, 32));
    case BY_KEY_ID: return key->id == id;
    default: return ((const struct user_entry *)entry)->id == id;
    }
}

// ---- entries

// Where the parts behind an entry begin.
static const uint16_t *model_lengths(const struct key_entry *entry)
{
    return (const uint16_t *)(key_entry_upstream_ids(entry) + entry->upstream_count);
}

static const char *uid_bytes(const struct key_entry *entry)
{
    return (const char *)(model_lengths(entry) + entry->allowed_model_count);
}

static size_t uid_size(const struct key_entry *entry)
{
    return entry->uid_len ? entry->uid_len : sizeof(struct gw_id);
}

struct slice key_entry_prefix(const struct key_entry *entry)
{
    return slice_of(uid_bytes(entry) + uid_size(entry), entry->prefix_len);
}

struct slice key_entry_name(const struct key_entry *entry)
{
    struct slice prefix = key_entry_prefix(entry);
    return slice_of(prefix.ptr + prefix.len, entry->name_len);
}

struct slice key_entry_model(const struct key_entry *entry, size_t at)
{
    const uint16_t *lengths = model_lengths(entry);
    struct slice name = key_entry_name(entry);
    const char *text = name.ptr + name.len;
    for (size_t i = 0; i < at; i++)
        text += lengths[i];
    return slice_of(text, lengths[at]);
}

void key_entry_uid(const struct key_entry *entry, char out[37])
{
    struct gw_id id;
    size_t len = entry->uid_len < 36 ? entry->uid_len : 36;
    if (entry->uid_len == 0) {
        memcpy(id.bytes, uid_bytes(entry), sizeof(id.bytes));
        id_format(&id, out);
        return;
    }
    memcpy(out, uid_bytes(entry), len);
    out[len] = '\0';
}

// Of the memory of an entry.
static size_t key_size(const struct key_entry *entry)
{
    struct slice name = key_entry_name(entry);
    const uint16_t *lengths = model_lengths(entry);
    size_t size = (size_t)(name.ptr + name.len - (const char *)entry);
    for (size_t i = 0; i < entry->allowed_model_count; i++)
        size += lengths[i];
    return size;
}

static size_t user_size(const struct user_entry *user)
{
    return sizeof(*user) + user->name.len + user->group.len;
}

static char *put_text(char *at, struct slice text)
{
    if (text.len)
        memcpy(at, text.ptr, text.len);
    return at + text.len;
}

static uint32_t clamp_rate(int64_t rate)
{
    return rate < 0 ? 0 : rate > UINT32_MAX ? UINT32_MAX : (uint32_t)rate;
}

static int make_key(struct directory *directory, const struct key_record *input,
                    struct key_entry **out)
{
    struct gw_id id;
    char formatted[37] = "";
    if (id_parse(input->uid, &id) == 0)
        id_format(&id, formatted);
    bool is_uuid = slice_is(input->uid, formatted);
    if ((!is_uuid && input->uid.len > UINT8_MAX) || input->prefix.len > UINT8_MAX ||
        input->name.len > UINT16_MAX || input->upstream_count > LIST_MAX ||
        input->allowed_model_count > LIST_MAX)
        return GW_ETOOBIG;
    // An empty uid would be taken for a UUID: it becomes a text of one byte.
    struct slice uid = is_uuid && input->uid.len ? slice_of((const char *)id.bytes, 16)
                       : input->uid.len          ? input->uid
                                                 : SLICE_LIT("-");
    size_t size = sizeof(struct key_entry) + input->upstream_count * sizeof(int64_t) +
                  input->allowed_model_count * sizeof(uint16_t) + uid.len + input->prefix.len +
                  input->name.len;
    for (size_t i = 0; i < input->allowed_model_count; i++) {
        if (input->allowed_models[i].len > UINT16_MAX)
            return GW_ETOOBIG;
        size += input->allowed_models[i].len;
    }
    struct key_entry *entry = directory_memory_take(directory->memory, size);
    if (!entry)
        return GW_ENOMEM;
    *entry = (struct key_entry){
        .id = input->id,
        .user_id = input->user_id,
        .expires_ms = input->expires_ms,
        .hash = input->hash,
        .rpm = clamp_rate(input->rpm),
        .rpd = clamp_rate(input->rpd),
        .upstream_count = (uint16_t)input->upstream_count,
        .allowed_model_count = (uint16_t)input->allowed_model_count,
        .name_len = (uint16_t)input->name.len,
        .prefix_len = (uint8_t)input->prefix.len,
        .uid_len = is_uuid && input->uid.len ? 0 : (uint8_t)uid.len,
        .is_active = input->is_active,
        .has_upstream_list = input->has_upstream_list,
    };
    int64_t *ids = (int64_t *)(entry + 1);
    if (input->upstream_count)
        memcpy(ids, input->upstream_ids, input->upstream_count * sizeof(*ids));
    uint16_t *lengths = (uint16_t *)(ids + input->upstream_count);
    char *at = put_text((char *)(lengths + input->allowed_model_count), uid);
    at = put_text(at, input->prefix);
    at = put_text(at, input->name);
    for (size_t i = 0; i < input->allowed_model_count; i++) {
        lengths[i] = (uint16_t)input->allowed_models[i].len;
        at = put_text(at, input->allowed_models[i]);
    }
    *out = entry;
    return 0;
}

// ---- life

struct directory *directory_new(struct epoch *epoch)
{
    struct directory *directory = calloc(1, sizeof(*directory));
    if (!directory)
        return NULL;
    directory->memory = directory_memory_new();
    if (!directory->memory) {
        free(directory);
        return NULL;
    }
    directory->epoch = epoch;
    directory->by_hash.kind = BY_HASH;
    directory->by_key_id.kind = BY_KEY_ID;
    directory->by_user_id.kind = BY_USER_ID;
    pthread_mutex_init(&directory->mutex, NULL);
    return directory;
}

void directory_free(struct directory *directory)
{
    if (!directory)
        return;
    // Entries and tables go with the memory.
    directory_memory_close(directory->memory);
    pthread_mutex_destroy(&directory->mutex);
    free(directory);
}

static void retire(struct directory *directory, void *piece, size_t size)
{
    directory_memory_retire(directory->memory, directory->epoch, piece, size);
}

// ---- tables

static size_t table_size(size_t capacity)
{
    return sizeof(struct table) + capacity * sizeof(_Atomic(void *));
}

static void *find(const struct index *index, uint64_t hash64, const struct sha256 *hash, int64_t id)
{
    const struct stripe *stripe = &index->stripes[hash64 >> 56];
    const struct table *table = atomic_load_explicit(&stripe->table, memory_order_acquire);
    if (!table)
        return NULL;
    for (size_t i = 0, at = hash64; i < table->capacity; i++, at++) {
        void *entry =
            atomic_load_explicit(&table->places[at & (table->capacity - 1)], memory_order_acquire);
        if (!entry)
            return NULL;
        if (entry != DROPPED && is_same(index->kind, entry, hash, id))
            return entry;
    }
    return NULL;
}

// The place of an entry in the writer's view, or NULL.
static _Atomic(void *) *place_of(struct index *index, const void *entry)
{
    uint64_t hash64 = hash_of(index->kind, entry);
    struct table *table = atomic_load(&index->stripes[hash64 >> 56].table);
    for (size_t i = 0, at = hash64; table && i < table->capacity; i++, at++) {
        void *found = atomic_load(&table->places[at & (table->capacity - 1)]);
        if (!found)
            return NULL;
        if (found == entry)
            return &table->places[at & (table->capacity - 1)];
    }
    return NULL;
}

static void put_in_table(struct table *table, uint64_t hash64, void *entry)
{
    size_t at = hash64 & (table->capacity - 1);
    void *found;
    while ((found = atomic_load_explicit(&table->places[at], memory_order_relaxed)) &&
           found != DROPPED)
        at = (at + 1) & (table->capacity - 1);
    if (!found)
        table->used++;
    atomic_store_explicit(&table->places[at], entry, memory_order_release);
}

// A table for `count` entries in place of a stripe's old one.
static int grow(struct directory *directory, struct index *index, struct stripe *stripe,
                size_t count)
{
    struct table *old = atomic_load(&stripe->table);
    size_t capacity = CAPACITY_MIN;
    while (count * 5 > capacity * 3)
        capacity *= 2;
    struct table *table = directory_memory_take(directory->memory, table_size(capacity));
    if (!table)
        return GW_ENOMEM;
    memset(table, 0, table_size(capacity));
    table->capacity = capacity;
    for (size_t i = 0; old && i < old->capacity; i++) {
        void *entry = atomic_load_explicit(&old->places[i], memory_order_relaxed);
        if (!entry || entry == DROPPED)
            continue;
        put_in_table(table, hash_of(index->kind, entry), entry);
        directory->work.moved++;
    }
    directory->work.grown++;
    atomic_store_explicit(&stripe->table, table, memory_order_release);
    if (old)
        retire(directory, old, table_size(old->capacity));
    return 0;
}

// Makes room for one more entry in the stripe of a hash. GW_ENOMEM.
static int make_room(struct directory *directory, struct index *index, uint64_t hash64)
{
    struct stripe *stripe = &index->stripes[hash64 >> 56];
    struct table *old = atomic_load(&stripe->table);
    if (old && (old->used + 1) * 4 <= old->capacity * 3)
        return 0;
    return grow(directory, index, stripe, stripe->count + 1);
}

static int reserve(struct directory *directory, struct index *index, size_t count)
{
    for (size_t i = 0; i < STRIPES && count > STRIPES * CAPACITY_MIN; i++) {
        struct table *old = atomic_load(&index->stripes[i].table);
        // Some stripes get more than their share.
        size_t share = count / STRIPES + count / STRIPES / 8;
        if (old && old->capacity >= share * 2)
            continue;
        int err = grow(directory, index, &index->stripes[i], share);
        if (err)
            return err;
    }
    return 0;
}

int directory_reserve(struct directory *directory, size_t keys, size_t users)
{
    pthread_mutex_lock(&directory->mutex);
    int err = reserve(directory, &directory->by_hash, keys);
    if (err == 0)
        err = reserve(directory, &directory->by_key_id, keys);
    if (err == 0)
        err = reserve(directory, &directory->by_user_id, users);
    pthread_mutex_unlock(&directory->mutex);
    return err;
}

// Room has been made before: cannot fail.
static void insert(struct index *index, void *entry)
{
    uint64_t hash64 = hash_of(index->kind, entry);
    struct stripe *stripe = &index->stripes[hash64 >> 56];
    put_in_table(atomic_load(&stripe->table), hash64, entry);
    stripe->count++;
}

static void replace(struct index *index, void *old, void *entry)
{
    _Atomic(void *) *place = place_of(index, old);
    gw_require(place != NULL);
    atomic_store_explicit(place, entry, memory_order_release);
}

static void erase(struct index *index, void *old)
{
    replace(index, old, DROPPED);
    index->stripes[hash_of(index->kind, old) >> 56].count--;
}

// ---- changes

// The entry's memory, and with the key itself its slot's.
static void retire_key(struct directory *directory, struct key_entry *entry, bool with_slot)
{
    if (with_slot)
        retire(directory, entry->slot, sizeof(*entry->slot));
    retire(directory, entry, key_size(entry));
}

static int take_slot(struct directory *directory, struct key_slot **out)
{
    struct key_slot *slot = directory_memory_take(directory->memory, sizeof(*slot));
    if (!slot)
        return GW_ENOMEM;
    atomic_init(&slot->last_used_ms, 0);
    atomic_init(&slot->request_count, 0);
    *out = slot;
    return 0;
}

// The new entry is in place under its hash before an old one goes: a reader of an unchanged key
// finds the one or the other.
static void exchange_key(struct directory *directory, struct key_entry *entry,
                         struct key_entry *same_id, struct key_entry *same_hash)
{
    if (same_hash)
        replace(&directory->by_hash, same_hash, entry);
    else
        insert(&directory->by_hash, entry);
    if (same_id)
        replace(&directory->by_key_id, same_id, entry);
    else
        insert(&directory->by_key_id, entry);
    if (same_id && same_id != same_hash)
        erase(&directory->by_hash, same_id);
    if (same_hash && same_hash != same_id) {
        erase(&directory->by_key_id, same_hash);
        atomic_fetch_sub(&directory->key_count, 1);
        retire_key(directory, same_hash, true);
    }
    if (same_id)
        retire_key(directory, same_id, false);
    else
        atomic_fetch_add(&directory->key_count, 1);
}

int directory_put_key(struct directory *directory, const struct key_record *input)
{
    uint64_t hash64 = head(&input->hash), id64 = mix(input->id);
    struct key_entry *entry = NULL;
    int err = make_key(directory, input, &entry);
    if (err)
        return err;
    pthread_mutex_lock(&directory->mutex);
    struct key_entry *same_id = find(&directory->by_key_id, id64, NULL, input->id);
    struct key_entry *same_hash = find(&directory->by_hash, hash64, &input->hash, 0);
    struct key_slot *slot = same_id ? same_id->slot : NULL;
    if (!slot)
        err = take_slot(directory, &slot);
    if (err == 0 && !same_hash)
        err = make_room(directory, &directory->by_hash, hash64);
    if (err == 0 && !same_id)
        err = make_room(directory, &directory->by_key_id, id64);
    if (err == 0) {
        entry->slot = slot;
        exchange_key(directory, entry, same_id, same_hash);
    }
    pthread_mutex_unlock(&directory->mutex);
    if (err) {
        if (!same_id)
            directory_memory_give(directory->memory, slot, sizeof(*slot));
        directory_memory_give(directory->memory, entry, key_size(entry));
    }
    return err;
}

void directory_drop_key(struct directory *directory, int64_t id)
{
    pthread_mutex_lock(&directory->mutex);
    struct key_entry *entry = find(&directory->by_key_id, mix(id), NULL, id);
    if (entry) {
        erase(&directory->by_hash, entry);
        erase(&directory->by_key_id, entry);
        atomic_fetch_sub(&directory->key_count, 1);
        retire_key(directory, entry, true);
    }
    pthread_mutex_unlock(&directory->mutex);
}

int directory_put_user(struct directory *directory, const struct user_entry *input)
{
    struct user_entry *user = directory_memory_take(directory->memory, user_size(input));
    if (!user)
        return GW_ENOMEM;
    *user = *input;
    char *text = (char *)(user + 1);
    user->name = slice_of(text, input->name.len);
    user->group = slice_of(put_text(text, input->name), input->group.len);
    put_text(text + input->name.len, input->group);
    uint64_t id64 = mix(input->id);
    pthread_mutex_lock(&directory->mutex);
    struct user_entry *old = find(&directory->by_user_id, id64, NULL, input->id);
    int err = old ? 0 : make_room(directory, &directory->by_user_id, id64);
    if (err == 0 && old) {
        replace(&directory->by_user_id, old, user);
        retire(directory, old, user_size(old));
    } else if (err == 0) {
        insert(&directory->by_user_id, user);
    }
    pthread_mutex_unlock(&directory->mutex);
    if (err)
        directory_memory_give(directory->memory, user, user_size(user));
    return err;
}

void directory_drop_user(struct directory *directory, int64_t id)
{
    pthread_mutex_lock(&directory->mutex);
    struct user_entry *user = find(&directory->by_user_id, mix(id), NULL, id);
    if (user) {
        erase(&directory->by_user_id, user);
        retire(directory, user, user_size(user));
    }
    pthread_mutex_unlock(&directory->mutex);
}

// ---- readers

const struct key_entry *directory_key(const struct directory *directory, const struct sha256 *hash)
{
    return find(&directory->by_hash, head(hash), hash, 0);
}

const struct key_entry *directory_key_by_id(const struct directory *directory, int64_t id)
{
    return find(&directory->by_key_id, mix(id), NULL, id);
}

const struct user_entry *directory_user(const struct directory *directory, int64_t id)
{
    return find(&directory->by_user_id, mix(id), NULL, id);
}

size_t directory_key_count(const struct directory *directory)
{
    return atomic_load(&directory->key_count);
}

static size_t longest_probe(const struct index *index)
{
    size_t longest = 0;
    for (size_t s = 0; s < STRIPES; s++) {
        const struct table *table = atomic_load(&index->stripes[s].table);
        for (size_t i = 0; table && i < table->capacity; i++) {
            const void *entry = atomic_load(&table->places[i]);
            if (!entry || entry == DROPPED)
                continue;
            size_t probe = (i - hash_of(index->kind, entry)) & (table->capacity - 1);
            longest = probe > longest ? probe : longest;
        }
    }
    return longest;
}

void directory_read_work(struct directory *directory, struct directory_work *work)
{
    pthread_mutex_lock(&directory->mutex);
    *work = directory->work;
    size_t by_hash = longest_probe(&directory->by_hash);
    size_t by_id = longest_probe(&directory->by_key_id);
    work->longest_probe = by_hash > by_id ? by_hash : by_id;
    pthread_mutex_unlock(&directory->mutex);
}

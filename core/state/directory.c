// Three striped hash tables of immutable entries: keys by hash, keys by id, users by id. Readers
// probe without a lock inside an epoch; a place holds NULL (never used), DROPPED or an entry, and
// changes by one atomic store. Writers come from one lane, so they share one mutex; tables grow per
// stripe, which keeps each rehash short. Replaced entries and tables are retired to the epoch.
#include "state/directory.h"
#include <pthread.h>
#include <stdlib.h>

#define STRIPES 256
#define CAPACITY_MIN 16
#define DROPPED ((struct node *)1)

struct index;

// What is retired; when the epoch cannot queue it, it waits in the directory's own list.
struct retired {
    struct retired *next;
    void (*free_it)(void *self);
};

struct node {
    struct retired retired;
    union {
        struct key_entry key;
        struct user_entry user;
    };
    bool is_slot_owner; // set when the key itself goes
};

struct table {
    struct retired retired;
    size_t capacity; // power of two
    size_t used;     // places not NULL (dropped ones too); writer's
    _Atomic(struct node *) places[];
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
    pthread_mutex_t mutex; // writers
    struct retired *waiting;
    atomic_size_t key_count;
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

static uint64_t hash_of(enum index_kind kind, const struct node *node)
{
    switch (kind) {
    case BY_HASH: return head(&node->key.hash);
    case BY_KEY_ID: return mix(node->key.id);
    default: return mix(node->user.id);
    }
}

static bool is_same(enum index_kind kind, const struct node *node, const struct sha256 *hash,
                    int64_t id)
{
    switch (kind) {
    case BY_HASH:
        return secret_equal(slice_of((const char *)node->key.hash.bytes, 32),
                            slice_of((const char *)hash->bytes, 32));
    case BY_KEY_ID: return node->key.id == id;
    default: return node->user.id == id;
    }
}

struct directory *directory_new(struct epoch *epoch)
{
    struct directory *directory = calloc(1, sizeof(*directory));
    if (!directory)
        return NULL;
    directory->epoch = epoch;
    directory->by_hash.kind = BY_HASH;
    directory->by_key_id.kind = BY_KEY_ID;
    directory->by_user_id.kind = BY_USER_ID;
    pthread_mutex_init(&directory->mutex, NULL);
    return directory;
}

static void free_node(void *arg)
{
    struct node *node = arg;
    if (node->is_slot_owner)
        free(node->key.slot);
    free(node);
}

static void free_index(struct index *index, bool with_nodes)
{
    for (size_t s = 0; s < STRIPES; s++) {
        struct table *table = atomic_load(&index->stripes[s].table);
        for (size_t i = 0; with_nodes && table && i < table->capacity; i++) {
            struct node *node = atomic_load(&table->places[i]);
            if (!node || node == DROPPED)
                continue;
            node->is_slot_owner = index->kind == BY_KEY_ID;
            free_node(node);
        }
        free(table);
    }
}

void directory_free(struct directory *directory)
{
    if (!directory)
        return;
    free_index(&directory->by_hash, false);
    free_index(&directory->by_key_id, true);
    free_index(&directory->by_user_id, true);
    while (directory->waiting) {
        struct retired *retired = directory->waiting;
        directory->waiting = retired->next;
        retired->free_it(retired);
    }
    pthread_mutex_destroy(&directory->mutex);
    free(directory);
}

static void retire(struct directory *directory, void *object, void (*free_it)(void *))
{
    struct retired *retired = object;
    retired->free_it = free_it;
    retired->next = directory->waiting;
    directory->waiting = retired;
    while (directory->waiting) {
        retired = directory->waiting;
        struct retired *next = retired->next;
        if (epoch_retire(directory->epoch, retired, retired->free_it) != 0)
            return; // no memory: tried again at the next change
        directory->waiting = next;
    }
}

static struct node *find(const struct index *index, uint64_t hash64, const struct sha256 *hash,
                         int64_t id)
{
    const struct stripe *stripe = &index->stripes[hash64 >> 56];
    const struct table *table = atomic_load_explicit(&stripe->table, memory_order_acquire);
    if (!table)
        return NULL;
    for (size_t i = 0, at = hash64; i < table->capacity; i++, at++) {
        struct node *node =
            atomic_load_explicit(&table->places[at & (table->capacity - 1)], memory_order_acquire);
        if (!node)
            return NULL;
        if (node != DROPPED && is_same(index->kind, node, hash, id))
            return node;
    }
    return NULL;
}

// The place of a node in the writer's view, or NULL.
static _Atomic(struct node *) *place_of(struct index *index, const struct node *node)
{
    uint64_t hash64 = hash_of(index->kind, node);
    struct table *table = atomic_load(&index->stripes[hash64 >> 56].table);
    for (size_t i = 0, at = hash64; table && i < table->capacity; i++, at++) {
        struct node *found = atomic_load(&table->places[at & (table->capacity - 1)]);
        if (!found)
            return NULL;
        if (found == node)
            return &table->places[at & (table->capacity - 1)];
    }
    return NULL;
}

static void put_in_table(struct table *table, uint64_t hash64, struct node *node)
{
    size_t at = hash64 & (table->capacity - 1);
    struct node *found;
    while ((found = atomic_load_explicit(&table->places[at], memory_order_relaxed)) &&
           found != DROPPED)
        at = (at + 1) & (table->capacity - 1);
    if (!found)
        table->used++;
    atomic_store_explicit(&table->places[at], node, memory_order_release);
}

// Makes room for one more entry in the stripe of a hash. GW_ENOMEM.
static int make_room(struct directory *directory, struct index *index, uint64_t hash64)
{
    struct stripe *stripe = &index->stripes[hash64 >> 56];
    struct table *old = atomic_load(&stripe->table);
    if (old && (old->used + 1) * 4 <= old->capacity * 3)
        return 0;
    size_t capacity = CAPACITY_MIN;
    while ((stripe->count + 1) * 2 > capacity)
        capacity *= 2;
    struct table *table = calloc(1, sizeof(*table) + capacity * sizeof(table->places[0]));
    if (!table)
        return GW_ENOMEM;
    table->capacity = capacity;
    for (size_t i = 0; old && i < old->capacity; i++) {
        struct node *node = atomic_load_explicit(&old->places[i], memory_order_relaxed);
        if (node && node != DROPPED)
            put_in_table(table, hash_of(index->kind, node), node);
    }
    atomic_store_explicit(&stripe->table, table, memory_order_release);
    if (old)
        retire(directory, old, free);
    return 0;
}

// Room has been made before: cannot fail.
static void insert(struct index *index, struct node *node)
{
    uint64_t hash64 = hash_of(index->kind, node);
    struct stripe *stripe = &index->stripes[hash64 >> 56];
    put_in_table(atomic_load(&stripe->table), hash64, node);
    stripe->count++;
}

static void replace(struct index *index, struct node *old, struct node *node)
{
    _Atomic(struct node *) *place = place_of(index, old);
    gw_require(place != NULL);
    atomic_store_explicit(place, node, memory_order_release);
}

static void erase(struct index *index, struct node *old)
{
    replace(index, old, DROPPED);
    index->stripes[hash_of(index->kind, old) >> 56].count--;
}

static struct slice take_text(char **at, struct slice text)
{
    struct slice copy = slice_of(*at, text.len);
    if (text.len)
        memcpy(*at, text.ptr, text.len);
    *at += text.len;
    return copy;
}

// One allocation: node, upstream ids, model slices, texts.
static struct node *copy_key(const struct key_entry *entry)
{
    size_t ids = entry->upstream_count * sizeof(int64_t);
    size_t models = entry->allowed_model_count * sizeof(struct slice);
    size_t texts = entry->prefix.len + entry->name.len;
    for (size_t i = 0; i < entry->allowed_model_count; i++)
        texts += entry->allowed_models[i].len;
    struct node *node = malloc(sizeof(*node) + ids + models + texts);
    if (!node)
        return NULL;
    *node = (struct node){.key = *entry};
    int64_t *id_place = (int64_t *)(node + 1);
    struct slice *model_place = (struct slice *)(id_place + entry->upstream_count);
    char *text_place = (char *)(model_place + entry->allowed_model_count);
    if (ids)
        memcpy(id_place, entry->upstream_ids, ids);
    node->key.upstream_ids = id_place;
    node->key.allowed_models = model_place;
    for (size_t i = 0; i < entry->allowed_model_count; i++)
        model_place[i] = take_text(&text_place, entry->allowed_models[i]);
    node->key.prefix = take_text(&text_place, entry->prefix);
    node->key.name = take_text(&text_place, entry->name);
    return node;
}

int directory_put_key(struct directory *directory, const struct key_entry *entry)
{
    uint64_t hash64 = head(&entry->hash), id64 = mix(entry->id);
    struct node *node = copy_key(entry);
    if (!node)
        return GW_ENOMEM;
    node->key.slot = NULL;
    pthread_mutex_lock(&directory->mutex);
    struct node *same_id = find(&directory->by_key_id, id64, NULL, entry->id);
    struct node *same_hash = find(&directory->by_hash, hash64, &entry->hash, 0);
    struct key_slot *slot = same_id ? same_id->key.slot : calloc(1, sizeof(*slot));
    int err = slot ? 0 : GW_ENOMEM;
    if (err == 0)
        err = make_room(directory, &directory->by_hash, hash64);
    if (err == 0)
        err = make_room(directory, &directory->by_key_id, id64);
    if (err) {
        pthread_mutex_unlock(&directory->mutex);
        if (!same_id)
            free(slot);
        free(node);
        return err;
    }
    node->key.slot = slot;
    // The new entry is in place under its hash before an old one goes: a reader of an unchanged
    // key finds the one or the other.
    if (same_hash)
        replace(&directory->by_hash, same_hash, node);
    else
        insert(&directory->by_hash, node);
    if (same_id)
        replace(&directory->by_key_id, same_id, node);
    else
        insert(&directory->by_key_id, node);
    if (same_id && same_id != same_hash)
        erase(&directory->by_hash, same_id);
    if (same_hash && same_hash != same_id) {
        erase(&directory->by_key_id, same_hash);
        same_hash->is_slot_owner = true;
        atomic_fetch_sub(&directory->key_count, 1);
        retire(directory, same_hash, free_node);
    }
    if (same_id)
        retire(directory, same_id, free_node);
    else
        atomic_fetch_add(&directory->key_count, 1);
    pthread_mutex_unlock(&directory->mutex);
    return 0;
}

void directory_drop_key(struct directory *directory, int64_t id)
{
    pthread_mutex_lock(&directory->mutex);
    struct node *node = find(&directory->by_key_id, mix(id), NULL, id);
    if (node) {
        erase(&directory->by_hash, node);
        erase(&directory->by_key_id, node);
        node->is_slot_owner = true;
        atomic_fetch_sub(&directory->key_count, 1);
        retire(directory, node, free_node);
    }
    pthread_mutex_unlock(&directory->mutex);
}

int directory_put_user(struct directory *directory, const struct user_entry *entry)
{
    struct node *node = malloc(sizeof(*node) + entry->name.len + entry->group.len);
    if (!node)
        return GW_ENOMEM;
    *node = (struct node){.user = *entry};
    char *text = (char *)(node + 1);
    node->user.name = take_text(&text, entry->name);
    node->user.group = take_text(&text, entry->group);
    uint64_t id64 = mix(entry->id);
    pthread_mutex_lock(&directory->mutex);
    struct node *old = find(&directory->by_user_id, id64, NULL, entry->id);
    int err = make_room(directory, &directory->by_user_id, id64);
    if (err == 0 && old) {
        replace(&directory->by_user_id, old, node);
        retire(directory, old, free_node);
    } else if (err == 0) {
        insert(&directory->by_user_id, node);
    }
    pthread_mutex_unlock(&directory->mutex);
    if (err)
        free(node);
    return err;
}

void directory_drop_user(struct directory *directory, int64_t id)
{
    pthread_mutex_lock(&directory->mutex);
    struct node *node = find(&directory->by_user_id, mix(id), NULL, id);
    if (node) {
        erase(&directory->by_user_id, node);
        retire(directory, node, free_node);
    }
    pthread_mutex_unlock(&directory->mutex);
}

const struct key_entry *directory_key(const struct directory *directory, const struct sha256 *hash)
{
    const struct node *node = find(&directory->by_hash, head(hash), hash, 0);
    return node ? &node->key : NULL;
}

const struct key_entry *directory_key_by_id(const struct directory *directory, int64_t id)
{
    const struct node *node = find(&directory->by_key_id, mix(id), NULL, id);
    return node ? &node->key : NULL;
}

const struct user_entry *directory_user(const struct directory *directory, int64_t id)
{
    const struct node *node = find(&directory->by_user_id, mix(id), NULL, id);
    return node ? &node->user : NULL;
}

size_t directory_key_count(const struct directory *directory)
{
    return atomic_load(&directory->key_count);
}

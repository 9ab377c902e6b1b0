// From main.db to memory: the directory at start, and afterwards what the changes feed names.
#include "base/log.h"
#include "codec/json.h"
#include "state/store_impl.h"
#include <stdio.h>
#include <stdlib.h>

#define KEEP_CHANGES 10000
#define MODELS_MAX 1024

#define KEY_COLUMNS                                                                                \
    "SELECT id, uid, key_hash, user_id, is_active, revoked_ms, expires_ms, key_prefix, name, "     \
    "has_upstream_list, allowed_models, rpm, rpd, last_used_ms, request_count FROM api_keys "
#define USER_COLUMNS                                                                               \
    "SELECT id, username, grp, is_active, is_admin, discount_ppm, deleted_ms FROM users "

struct link {
    int64_t key_id, upstream_id;
};

// The upstream lists of keys, in order of key.
struct links {
    struct link *items;
    size_t count, capacity;
    size_t at; // keys come in the same order
};

struct loader {
    struct store *store;
    struct links links;
    int64_t *ids; // of one key
    size_t id_capacity;
    size_t found;
};

static int on_link(void *user, const struct db_value *row, size_t count)
{
    struct links *links = user;
    (void)count;
    if (links->count == links->capacity) {
        size_t capacity = links->capacity ? links->capacity * 2 : 1024;
        struct link *items = realloc(links->items, capacity * sizeof(*items));
        if (!items)
            return GW_ENOMEM;
        links->items = items;
        links->capacity = capacity;
    }
    links->items[links->count++] = (struct link){row[0].integer, row[1].integer};
    return 0;
}

static int take_upstreams(struct loader *loader, struct key_record *entry)
{
    struct links *links = &loader->links;
    while (links->at < links->count && links->items[links->at].key_id < entry->id)
        links->at++;
    size_t first = links->at;
    while (links->at < links->count && links->items[links->at].key_id == entry->id)
        links->at++;
    size_t count = links->at - first;
    if (count > loader->id_capacity) {
        int64_t *ids = realloc(loader->ids, count * sizeof(*ids));
        if (!ids)
            return GW_ENOMEM;
        loader->ids = ids;
        loader->id_capacity = count;
    }
    for (size_t i = 0; i < count; i++)
        loader->ids[i] = links->items[first + i].upstream_id;
    entry->upstream_ids = loader->ids;
    entry->upstream_count = count;
    return 0;
}

// A list that cannot be read allows nothing: the key is put in inactive.
static int put_with_models(struct directory *directory, struct key_record *entry, struct slice json)
{
    struct json_doc *doc = NULL;
    const char *why = NULL;
    size_t at = 0, i, max, count = 0;
    yyjson_val *item;
    struct slice *models = NULL;
    int err = json_parse(json, 1 << 22, &doc, &why, &at);
    yyjson_val *root = err ? NULL : json_root(doc);
    if (err == GW_ENOMEM) {
        json_doc_free(doc);
        return err;
    }
    size_t size = yyjson_arr_size(root);
    if (yyjson_is_arr(root) && size <= MODELS_MAX) {
        models = calloc(size + 1, sizeof(*models));
        if (!models) {
            json_doc_free(doc);
            return GW_ENOMEM;
        }
        yyjson_arr_foreach(root, i, max, item)
        {
            if (json_string_slice(item).len)
                models[count++] = json_string_slice(item);
        }
        entry->allowed_models = models;
        entry->allowed_model_count = count;
    } else {
        entry->is_active = false;
        log_event(LOG_ERROR, "key_models_unreadable", LOG_INT("key_id", entry->id));
    }
    err = directory_put_key(directory, entry);
    free(models);
    json_doc_free(doc);
    return err;
}

static int on_key(void *user, const struct db_value *row, size_t count)
{
    struct loader *loader = user;
    struct directory *directory = loader->store->directory;
    if (count != 15 || row[2].bytes.len != sizeof(struct sha256))
        return GW_ECORRUPT;
    struct key_record entry = {
        .id = row[0].integer,
        .uid = row[1].bytes,
        .user_id = row[3].integer,
        .is_active = row[4].integer && row[5].kind == DB_NULL,
        .expires_ms = row[6].integer,
        .prefix = row[7].bytes,
        .name = row[8].bytes,
        .has_upstream_list = row[9].integer,
        .rpm = row[11].integer,
        .rpd = row[12].integer,
    };
    memcpy(entry.hash.bytes, row[2].bytes.ptr, sizeof(entry.hash.bytes));
    int err = take_upstreams(loader, &entry);
    if (err)
        return err;
    err = row[10].kind == DB_TEXT && row[10].bytes.len
              ? put_with_models(directory, &entry, row[10].bytes)
              : directory_put_key(directory, &entry);
    loader->found++;
    if (err == 0 && row[14].integer) {
        // Only what is not there yet: a living slot knows better.
        struct key_slot *slot = directory_key_by_id(directory, entry.id)->slot;
        uint64_t none = 0;
        if (atomic_compare_exchange_strong(&slot->request_count, &none, (uint64_t)row[14].integer))
            atomic_store(&slot->last_used_ms, row[13].integer);
    }
    return err;
}

static int on_user(void *user, const struct db_value *row, size_t count)
{
    struct loader *loader = user;
    (void)count;
    struct user_entry entry = {
        .id = row[0].integer,
        .name = row[1].bytes,
        .group = row[2].bytes,
        .is_active = row[3].integer && row[6].kind == DB_NULL,
        .is_admin = row[4].integer,
        .discount_ppm = row[5].integer,
    };
    loader->found++;
    return directory_put_user(loader->store->directory, &entry);
}

static int load_key(struct store *store, struct db *db, int64_t id)
{
    struct loader loader = {.store = store};
    struct db_value args[] = {DB_INT_VALUE(id)};
    int err = db_each(db,
                      SLICE_LIT("SELECT api_key_id, upstream_id FROM api_key_upstreams "
                                "WHERE api_key_id = ? ORDER BY upstream_id"),
                      args, 1, on_link, &loader.links);
    if (err == 0)
        err = db_each(db, SLICE_LIT(KEY_COLUMNS "WHERE id = ?"), args, 1, on_key, &loader);
    if (err == 0 && loader.found == 0)
        directory_drop_key(store->directory, id);
    free(loader.links.items);
    free(loader.ids);
    return err;
}

static int load_user(struct store *store, struct db *db, int64_t id)
{
    struct loader loader = {.store = store};
    struct db_value args[] = {DB_INT_VALUE(id)};
    int err = db_each(db, SLICE_LIT(USER_COLUMNS "WHERE id = ?"), args, 1, on_user, &loader);
    if (err == 0 && loader.found == 0)
        directory_drop_user(store->directory, id);
    return err;
}

static int load_catalogue(struct store *store, struct db *db)
{
    struct catalogue *next = NULL;
    int err = catalogue_load(db, store->fernet, store->health, store->catalogue_version + 1, &next);
    if (err)
        return err;
    store->catalogue_version++;
    return catalogue_swap(store->catalogue, next);
}

static int on_seq(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    *(int64_t *)user = row[0].integer;
    return 0;
}

static int reserve_directory(struct store *store, struct db *db)
{
    int64_t keys = 0, users = 0;
    int err = db_each(db, SLICE_LIT("SELECT count(*) FROM api_keys"), NULL, 0, on_seq, &keys);
    if (err == 0)
        err = db_each(db, SLICE_LIT("SELECT count(*) FROM users"), NULL, 0, on_seq, &users);
    return err ? err : directory_reserve(store->directory, (size_t)keys, (size_t)users);
}

int store_load_all(struct store *store, struct db *db)
{
    struct loader loader = {.store = store};
    // One view of everything: what changes meanwhile comes by the feed.
    int err = db_begin(db, false);
    if (err == 0)
        err = db_each(db, SLICE_LIT("SELECT coalesce(max(seq), 0) FROM changes"), NULL, 0, on_seq,
                      &store->published_seq);
    if (err == 0)
        err = load_catalogue(store, db);
    if (err == 0)
        err = reserve_directory(store, db);
    if (err == 0)
        err = db_each(db,
                      SLICE_LIT("SELECT api_key_id, upstream_id FROM api_key_upstreams "
                                "ORDER BY api_key_id, upstream_id"),
                      NULL, 0, on_link, &loader.links);
    if (err == 0)
        err = db_each(db, SLICE_LIT(KEY_COLUMNS "ORDER BY id"), NULL, 0, on_key, &loader);
    if (err == 0)
        err = db_each(db, SLICE_LIT(USER_COLUMNS "ORDER BY id"), NULL, 0, on_user, &loader);
    db_rollback(db);
    free(loader.links.items);
    free(loader.ids);
    if (err == 0 && !store->is_readonly) {
        struct db_value args[] = {DB_INT_VALUE(store->published_seq - KEEP_CHANGES)};
        err = db_run(db, SLICE_LIT("DELETE FROM changes WHERE seq <= ?"), args, 1, NULL, 0, NULL);
    }
    return err;
}

struct change {
    int64_t seq, id;
    char kind[16];
};

struct changes {
    struct change items[256];
    size_t count;
};

static int on_change(void *user, const struct db_value *row, size_t count)
{
    struct changes *changes = user;
    struct change *change = &changes->items[changes->count++];
    (void)count;
    change->seq = row[0].integer;
    change->id = row[2].integer;
    snprintf(change->kind, sizeof(change->kind), "%.*s", (int)row[1].bytes.len, row[1].bytes.ptr);
    return 0;
}

int store_publish(struct store *store, struct db *db)
{
    struct changes changes;
    do {
        struct db_value args[] = {DB_INT_VALUE(store->published_seq)};
        bool has_catalogue = false;
        changes.count = 0;
        int err = db_each(db,
                          SLICE_LIT("SELECT seq, kind, id FROM changes WHERE seq > ? "
                                    "ORDER BY seq LIMIT 256"),
                          args, 1, on_change, &changes);
        for (size_t i = 0; i < changes.count && err == 0; i++) {
            const struct change *change = &changes.items[i];
            if (strcmp(change->kind, "key") == 0)
                err = load_key(store, db, change->id);
            else if (strcmp(change->kind, "user") == 0)
                err = load_user(store, db, change->id);
            else
                has_catalogue = true;
        }
        if (err == 0 && has_catalogue)
            err = load_catalogue(store, db);
        if (err)
            return err;
        if (changes.count)
            store->published_seq = changes.items[changes.count - 1].seq;
    } while (changes.count == 256);
    (void)epoch_reclaim(store->epoch);
    return 0;
}

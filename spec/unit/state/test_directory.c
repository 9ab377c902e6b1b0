// The directory: put, replace, drop, readers beside a writer, and the size of many keys.
#include "base/clock.h"
#include "state/directory.h"
#include "state_test.h"
#include <malloc.h>
#include <pthread.h>

static struct epoch *epoch;
static struct directory *directory;

static struct key_record entry_of(int64_t id, uint64_t hash)
{
    struct key_record entry = {.id = id, .is_active = true, .rpm = id};
    // As even as a real hash: its head chooses stripe and place.
    uint64_t head = (hash + 1) * UINT64_C(0x9e3779b97f4a7c15);
    memcpy(entry.hash.bytes, &head, sizeof(head));
    memcpy(entry.hash.bytes + 8, &hash, sizeof(hash));
    entry.uid = SLICE_LIT("0b5f3c1e-2d4a-4c6b-8e7f-9a0b1c2d3e4f");
    entry.prefix = SLICE_LIT("sk-auto-abcd");
    entry.name = SLICE_LIT("name");
    return entry;
}

static void setup(void)
{
    epoch = epoch_new(8);
    directory = directory_new(epoch);
}

static void teardown(void)
{
    directory_free(directory);
    epoch_destroy(epoch);
}

START_TEST(entries_are_copied_replaced_and_dropped)
{
    setup();
    int64_t ids[] = {4, 5};
    char name[] = "first";
    struct slice models[] = {SLICE_LIT("gpt-*"), SLICE_LIT("claude")};
    struct key_record entry = entry_of(1, 100);
    entry.name = slice_str(name);
    entry.upstream_ids = ids;
    entry.upstream_count = 2;
    entry.has_upstream_list = true;
    entry.allowed_models = models;
    entry.allowed_model_count = 2;
    ck_assert_int_eq(directory_put_key(directory, &entry), 0);
    memset(name, 'x', 5);
    ids[0] = 9;
    const struct key_entry *found = directory_key(directory, &entry.hash);
    ck_assert_ptr_nonnull(found);
    ck_assert(slice_is(key_entry_name(found), "first"));
    ck_assert_int_eq(key_entry_upstream_ids(found)[0], 4);
    ck_assert(slice_is(key_entry_model(found, 1), "claude"));
    ck_assert_ptr_eq(directory_key_by_id(directory, 1), found);
    // The slot survives; the entry does not.
    struct key_slot *slot = found->slot;
    atomic_store(&slot->request_count, 7);
    entry.is_active = false;
    ck_assert_int_eq(directory_put_key(directory, &entry), 0);
    found = directory_key(directory, &entry.hash);
    ck_assert(!found->is_active);
    ck_assert_ptr_eq(found->slot, slot);
    ck_assert_uint_eq(directory_key_count(directory), 1);
    // A new hash for the same id: the old one opens nothing.
    struct key_record rotated = entry_of(1, 200);
    ck_assert_int_eq(directory_put_key(directory, &rotated), 0);
    ck_assert_ptr_null(directory_key(directory, &entry.hash));
    ck_assert_int_eq(directory_key(directory, &rotated.hash)->id, 1);
    ck_assert_uint_eq(directory_key_count(directory), 1);
    // A new id with a known hash takes its place.
    struct key_record taken = entry_of(2, 200);
    ck_assert_int_eq(directory_put_key(directory, &taken), 0);
    ck_assert_ptr_null(directory_key_by_id(directory, 1));
    ck_assert_int_eq(directory_key(directory, &taken.hash)->id, 2);
    ck_assert_uint_eq(directory_key_count(directory), 1);
    directory_drop_key(directory, 2);
    directory_drop_key(directory, 2);
    ck_assert_ptr_null(directory_key(directory, &taken.hash));
    ck_assert_uint_eq(directory_key_count(directory), 0);

    struct user_entry user = {.id = 3, .name = SLICE_LIT("ann"), .group = SLICE_LIT("default")};
    ck_assert_int_eq(directory_put_user(directory, &user), 0);
    user.discount_ppm = 5;
    ck_assert_int_eq(directory_put_user(directory, &user), 0);
    ck_assert_int_eq(directory_user(directory, 3)->discount_ppm, 5);
    ck_assert(slice_is(directory_user(directory, 3)->name, "ann"));
    directory_drop_user(directory, 3);
    ck_assert_ptr_null(directory_user(directory, 3));
    teardown();
}
END_TEST

START_TEST(random_changes_agree_with_a_model)
{
    setup();
    enum { IDS = 500 };
    static int64_t hash_of[IDS]; // 0: absent
    unsigned seed = 99;
    memset(hash_of, 0, sizeof(hash_of));
    for (int i = 0; i < 60000; i++) {
        int64_t id = rand_r(&seed) % IDS;
        if (rand_r(&seed) % 3 == 0) {
            directory_drop_key(directory, id);
            hash_of[id] = 0;
        } else {
            int64_t hash = 1 + id * 4 + rand_r(&seed) % 4;
            struct key_record entry = entry_of(id, (uint64_t)hash);
            ck_assert_int_eq(directory_put_key(directory, &entry), 0);
            hash_of[id] = hash;
        }
        if (i % 5000 == 0)
            (void)epoch_reclaim(epoch);
    }
    size_t count = 0;
    for (int64_t id = 0; id < IDS; id++) {
        count += hash_of[id] != 0;
        ck_assert_int_eq(directory_key_by_id(directory, id) != NULL, hash_of[id] != 0);
        for (int64_t k = 0; k < 4; k++) {
            struct key_record entry = entry_of(id, (uint64_t)(1 + id * 4 + k));
            const struct key_entry *found = directory_key(directory, &entry.hash);
            ck_assert_int_eq(found != NULL, hash_of[id] == 1 + id * 4 + k);
        }
    }
    ck_assert_uint_eq(directory_key_count(directory), count);
    teardown();
}
END_TEST

static atomic_bool stop;
static _Atomic int bad;

static void *read_keys(void *arg)
{
    struct epoch_reader *reader = epoch_register(epoch);
    unsigned seed = (unsigned)(uintptr_t)arg;
    while (!atomic_load(&stop)) {
        epoch_enter(reader);
        for (int i = 0; i < 50; i++) {
            int64_t id = rand_r(&seed) % 1000;
            struct key_record wanted = entry_of(id, (uint64_t)id);
            const struct key_entry *key = directory_key(directory, &wanted.hash);
            // The first half is only ever replaced: always there, always whole.
            if (id < 500 && !key)
                atomic_fetch_add(&bad, 1);
            if (key && (key->id != id || key->rpm != id || !slice_is(key_entry_name(key), "name")))
                atomic_fetch_add(&bad, 1);
            if (key)
                atomic_fetch_add(&key->slot->request_count, 1);
        }
        epoch_leave(reader);
    }
    epoch_unregister(reader);
    return NULL;
}

START_TEST(readers_go_beside_a_writer)
{
    setup();
    pthread_t threads[3];
    atomic_store(&stop, false);
    for (int64_t id = 0; id < 500; id++) {
        struct key_record entry = entry_of(id, (uint64_t)id);
        ck_assert_int_eq(directory_put_key(directory, &entry), 0);
    }
    for (uintptr_t i = 0; i < 3; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, read_keys, (void *)(i + 1)), 0);
    unsigned seed = 5;
    for (int i = 0; i < 20000; i++) {
        int64_t id = rand_r(&seed) % 1000;
        if (id >= 500 && i % 2) {
            directory_drop_key(directory, id);
        } else {
            struct key_record entry = entry_of(id, (uint64_t)id);
            ck_assert_int_eq(directory_put_key(directory, &entry), 0);
        }
        if (i % 64 == 0)
            (void)epoch_reclaim(epoch);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    ck_assert_int_eq(atomic_load(&bad), 0);
    ck_assert_uint_eq(epoch_reclaim(epoch), 0);
    teardown();
}
END_TEST

// Resident memory, after all that is free has been given back.
static size_t resident(void)
{
    long pages = 0;
    (void)epoch_reclaim(epoch);
    malloc_trim(0);
    FILE *file = fopen("/proc/self/statm", "r");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fscanf(file, "%*d %ld", &pages), 1);
    fclose(file);
    return (size_t)pages * 4096;
}

START_TEST(reserved_tables_do_not_grow)
{
    setup();
    struct directory_work before, after;
    ck_assert_int_eq(directory_reserve(directory, 50000, 10000), 0);
    directory_read_work(directory, &before);
    for (int64_t id = 1; id <= 50000; id++) {
        struct key_record entry = entry_of(id, (uint64_t)id);
        struct user_entry user = {.id = id, .name = SLICE_LIT("u"), .group = SLICE_LIT("default")};
        ck_assert_int_eq(directory_put_key(directory, &entry), 0);
        if (id <= 10000)
            ck_assert_int_eq(directory_put_user(directory, &user), 0);
    }
    directory_read_work(directory, &after);
    ck_assert_uint_eq(after.grown, before.grown);
    ck_assert_uint_eq(after.moved, 0);
    char uid[37];
    key_entry_uid(directory_key_by_id(directory, 7), uid);
    ck_assert_str_eq(uid, "0b5f3c1e-2d4a-4c6b-8e7f-9a0b1c2d3e4f");
    // A text that is no UUID, and none at all.
    struct key_record odd = entry_of(60000, 60000);
    odd.uid = SLICE_LIT("u2");
    ck_assert_int_eq(directory_put_key(directory, &odd), 0);
    key_entry_uid(directory_key_by_id(directory, 60000), uid);
    ck_assert_str_eq(uid, "u2");
    static char long_text[70000];
    odd.name = slice_of(long_text, sizeof(long_text));
    ck_assert_int_eq(directory_put_key(directory, &odd), GW_ETOOBIG);
    odd.name = slice_of(long_text, 60000); // larger than a slab's pieces
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(directory_put_key(directory, &odd), 0);
    ck_assert_uint_eq(key_entry_name(directory_key_by_id(directory, 60000)).len, 60000);
    directory_drop_key(directory, 60000);
    teardown();
}
END_TEST

START_TEST(many_keys_are_small_and_quick)
{
    setup();
    const char *text = getenv("MOONGATE_KEYS");
    int64_t count = text ? atoll(text) : 200000;
    size_t before = resident();
    uint64_t start = clock_boot_ms();
    for (int64_t id = 1; id <= count; id++) {
        struct key_record entry = entry_of(id, (uint64_t)id);
        ck_assert_int_eq(directory_put_key(directory, &entry), 0);
    }
    uint64_t took = clock_boot_ms() - start;
    size_t bytes = resident() - before;
    // Counted work: each entry is moved less than twice by the growth of its three tables, and none
    // when room was made before.
    struct directory_work work;
    directory_read_work(directory, &work);
    ck_assert_uint_lt(work.moved, 4 * (size_t)count);
    ck_assert_uint_lt(work.longest_probe, 100);
    uint64_t moved = work.moved;
    for (int64_t id = 1; id <= 1000; id++) { // one change moves nothing but its own stripe
        struct key_record entry = entry_of(id, (uint64_t)id);
        entry.is_active = false;
        ck_assert_int_eq(directory_put_key(directory, &entry), 0);
    }
    directory_read_work(directory, &work);
    ck_assert_uint_eq(work.moved, moved);
    start = clock_boot_ns();
    for (int64_t id = 1; id <= count; id++) {
        struct key_record entry = entry_of(id, (uint64_t)id);
        ck_assert_int_eq(directory_key(directory, &entry.hash)->id, id);
    }
    printf("%lld keys: %llu ms, %zu bytes each, look-up %llu ns\n", (long long)count,
           (unsigned long long)took, bytes / (size_t)count,
           (unsigned long long)((clock_boot_ns() - start) / (uint64_t)count));
#if !defined(MOONGATE_ASAN) && !defined(MOONGATE_TSAN)
    ck_assert_uint_le(bytes / (size_t)count, 200);
#endif
    teardown();
}
END_TEST

TEST_MAIN("directory", entries_are_copied_replaced_and_dropped, random_changes_agree_with_a_model,
          readers_go_beside_a_writer, reserved_tables_do_not_grow, many_keys_are_small_and_quick)

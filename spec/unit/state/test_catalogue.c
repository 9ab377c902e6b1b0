// Wildcards, aliases, prices, and swapping beside readers.
#include "state/catalogue.h"
#include "state_test.h"
#include <pthread.h>

START_TEST(wildcards_match)
{
    static const struct {
        const char *pattern, *text;
        bool matches;
    } cases[] = {
        {"gpt-5", "gpt-5", true},
        {"gpt-5", "gpt-55", false},
        {"*", "", true},
        {"*", "anything", true},
        {"gpt-*", "gpt-", true},
        {"gpt-*", "gpt", false},
        {"*-mini", "gpt-mini", true},
        {"*-mini", "mini", false},
        {"a*b*c", "aXbYc", true},
        {"a*b*c", "abc", true},
        {"a*b*c", "acb", false},
        {"**", "x", true},
        {"a*a", "a", false},
        {"", "", true},
        {"", "x", false},
        {"a*ab", "aaab", true},
        {"*a*", "bab", true},
        {"x*", "", false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        ck_assert_msg(catalogue_matches(slice_str(cases[i].pattern), slice_str(cases[i].text)) ==
                          cases[i].matches,
                      "%s %s", cases[i].pattern, cases[i].text);
    // The worst pattern takes pattern × text, not more.
    char text[4000];
    memset(text, 'a', sizeof(text));
    ck_assert(
        !catalogue_matches(SLICE_LIT("*a*a*a*a*a*a*a*a*a*a*a*a*b"), slice_of(text, sizeof(text))));
}
END_TEST

START_TEST(aliases_map_models)
{
    struct arena *arena = arena_new(1024);
    const struct upstream_model models[] = {
        {SLICE_LIT("*"), SLICE_NONE},
        {SLICE_LIT("gpt-*"), SLICE_LIT("openai/gpt-*")},
        {SLICE_LIT("gpt-4*"), SLICE_LIT("old")},
        {SLICE_LIT("gpt-4o"), SLICE_LIT("exact")},
        {SLICE_LIT("plain"), SLICE_NONE},
        {SLICE_LIT("*@*"), SLICE_LIT("at-*!")},
    };
    struct upstream upstream = {.models = models, .model_count = 6};
    static const struct {
        const char *model, *name;
    } cases[] = {
        {"gpt-5", "openai/gpt-5"}, {"gpt-4.1", "old"}, {"gpt-4o", "exact"},     {"plain", "plain"},
        {"other", "other"},        {"x@y", "at-x!"},   {"gpt-", "openai/gpt-"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct slice name = catalogue_model_for(&upstream, slice_str(cases[i].model), arena);
        ck_assert_msg(slice_is(name, cases[i].name), "%s: %.*s", cases[i].model, SLICE_FMT(name));
    }
    ck_assert_ptr_null(catalogue_model_for(&upstream, SLICE_LIT("demo"), arena).ptr);
    upstream.models = models + 3;
    upstream.model_count = 2;
    ck_assert_ptr_null(catalogue_model_for(&upstream, SLICE_LIT("gpt-5"), arena).ptr);
    upstream.model_count = 0;
    ck_assert(slice_is(catalogue_model_for(&upstream, SLICE_LIT("any"), arena), "any"));
    ck_assert_ptr_null(catalogue_model_for(&upstream, SLICE_LIT("demo"), arena).ptr);
    const struct upstream_model demo[] = {{SLICE_LIT("demo"), SLICE_NONE}};
    upstream.models = demo;
    upstream.model_count = 1;
    ck_assert(slice_is(catalogue_model_for(&upstream, SLICE_LIT("demo"), arena), "demo"));
    arena_free(arena);
}
END_TEST

START_TEST(the_longest_price_wins)
{
    const struct price prices[] = {
        {.model = SLICE_LIT("*"), .version = 1},
        {.model = SLICE_LIT("gpt-*"), .version = 2},
        {.model = SLICE_LIT("gpt-5*"), .version = 3},
        {.model = SLICE_LIT("gpt-5-mini"), .version = 4},
    };
    struct catalogue catalogue = {.prices = prices, .price_count = 4};
    ck_assert_int_eq(catalogue_price(&catalogue, SLICE_LIT("gpt-5-mini"))->version, 4);
    ck_assert_int_eq(catalogue_price(&catalogue, SLICE_LIT("gpt-5-max"))->version, 3);
    ck_assert_int_eq(catalogue_price(&catalogue, SLICE_LIT("gpt-4"))->version, 2);
    ck_assert_int_eq(catalogue_price(&catalogue, SLICE_LIT("x"))->version, 1);
    catalogue.price_count = 0;
    ck_assert_ptr_null(catalogue_price(&catalogue, SLICE_LIT("x")));
}
END_TEST

static struct epoch *epoch;
static struct catalogue_ref *ref;
static atomic_bool stop;
static _Atomic int bad;

static struct catalogue *make(uint64_t version)
{
    struct arena *arena = arena_new(512);
    struct catalogue *catalogue = arena_zalloc(arena, sizeof(*catalogue));
    struct upstream *upstreams = arena_zalloc(arena, 3 * sizeof(*upstreams));
    for (int i = 0; i < 3; i++) {
        upstreams[i].id = i * 10;
        upstreams[i].weight = (int64_t)version;
    }
    *catalogue = (struct catalogue){version, arena, upstreams, 3, NULL, 0};
    return catalogue;
}

static void *read_catalogue(void *arg)
{
    struct epoch_reader *reader = epoch_register(epoch);
    (void)arg;
    while (!atomic_load(&stop)) {
        epoch_enter(reader);
        const struct catalogue *catalogue = catalogue_get(ref);
        if (catalogue->version) {
            const struct upstream *upstream = catalogue_upstream(catalogue, 20);
            if (!upstream || upstream->weight != (int64_t)catalogue->version ||
                catalogue_upstream(catalogue, 15))
                atomic_fetch_add(&bad, 1);
        }
        epoch_leave(reader);
    }
    epoch_unregister(reader);
    return NULL;
}

START_TEST(swaps_go_beside_readers)
{
    pthread_t threads[3];
    epoch = epoch_new(4);
    ref = catalogue_ref_new(epoch);
    ck_assert_uint_eq(catalogue_get(ref)->upstream_count, 0);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, read_catalogue, NULL), 0);
    for (uint64_t version = 1; version <= 3000; version++) {
        ck_assert_int_eq(catalogue_swap(ref, make(version)), 0);
        (void)epoch_reclaim(epoch);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    ck_assert_int_eq(atomic_load(&bad), 0);
    catalogue_ref_free(ref);
    epoch_destroy(epoch);
}
END_TEST

TEST_MAIN("catalogue", wildcards_match, aliases_map_models, the_longest_price_wins,
          swaps_go_beside_readers)

// Metrics: sums over shards, histograms, label limits, rendering while shards write.
#include "state/stats.h"
#include "state_test.h"
#include <pthread.h>

static struct stats *stats;
static struct buf text;

static const char *rendered(void)
{
    buf_clear(&text);
    ck_assert_int_eq(stats_render(stats, &text), 0);
    ck_assert_int_eq(buf_append_char(&text, '\0'), 0);
    return buf_slice(&text).ptr;
}

static void has(const char *line)
{
    const char *found = strstr(rendered(), line);
    ck_assert_msg(found && (found == buf_slice(&text).ptr || found[-1] == '\n'), "%s in\n%s", line,
                  buf_slice(&text).ptr);
}

START_TEST(shards_are_summed)
{
    stats = stats_new(2);
    int requests = stats_register(stats, STATS_COUNTER, "moongate_requests_total", "Requests.",
                                  "route,code", NULL, 0);
    int open = stats_register(stats, STATS_GAUGE, "moongate_open", "Open.", "", NULL, 0);
    int cost = stats_register(stats, STATS_COUNTER, "moongate_cost_total", "USD.", "", NULL, 0);
    ck_assert_int_eq(stats_register(stats, STATS_GAUGE, "moongate_open", "Open.", NULL, NULL, 0),
                     open);
    ck_assert_int_eq(stats_register(stats, STATS_COUNTER, "moongate_open", "Open.", "", NULL, 0),
                     GW_EINVAL);
    ck_assert_int_eq(stats_register(stats, STATS_GAUGE, "moongate_open", "Open.", "x", NULL, 0),
                     GW_EINVAL);
    stats_set_nano(stats, cost);
    struct slice labels[] = {SLICE_LIT("/v1/\"a\\b\"\n"), SLICE_LIT("200")};
    struct slice swapped[] = {SLICE_LIT("200"), SLICE_LIT("/v1/\"a\\b\"\n")};
    stats_add(stats_shard_of(stats, 0), requests, labels, 2, 3);
    stats_add(stats_shard_of(stats, 1), requests, labels, 2, 4);
    stats_add(stats_shard_of(stats, 1), requests, swapped, 2, 1);
    stats_add(stats_shard_of(stats, 1), requests, labels, 1, 100); // wrong count: ignored
    stats_add(stats_shard_of(stats, 1), 99, labels, 2, 100);
    stats_add(stats_shard_of(stats, 1), -3, labels, 2, 100);
    stats_set(stats_shard_of(stats, 0), open, NULL, 0, 5);
    stats_set(stats_shard_of(stats, 0), open, NULL, 0, 2);
    stats_set(stats_shard_of(stats, 1), open, NULL, 0, 1);
    stats_add(stats_shard_of(stats, 0), cost, NULL, 0, 1500000000);
    has("# HELP moongate_requests_total Requests.\n");
    has("# TYPE moongate_requests_total counter\n");
    has("moongate_requests_total{route=\"/v1/\\\"a\\\\b\\\"\\n\",code=\"200\"} 7\n");
    has("moongate_requests_total{route=\"200\",code=\"/v1/\\\"a\\\\b\\\"\\n\"} 1\n");
    has("moongate_open 3\n");
    has("moongate_cost_total 1.5\n");
    ck_assert_ptr_null(stats_shard_of(stats, 2));
    stats_free(stats);
    buf_free(&text);
}
END_TEST

START_TEST(histograms_cumulate)
{
    stats = stats_new(1);
    struct stats_shard *shard = stats_shard_of(stats, 0);
    static const double buckets[] = {.5, 1};
    int wait = stats_register(stats, STATS_HISTOGRAM, "wait_seconds", "Wait.", "", buckets, 2);
    int standard = stats_register(stats, STATS_HISTOGRAM, "ttft_seconds", "T.", "m", NULL, 0);
    static const uint64_t seen[] = {1, 500, 501, 1000, 1001, 70000};
    for (size_t i = 0; i < 6; i++)
        stats_observe_ms(shard, wait, NULL, 0, seen[i]);
    stats_observe_ms(shard, standard, &SLICE_LIT("x"), 1, 40);
    has("wait_seconds_bucket{le=\"0.5\"} 2\n");
    has("wait_seconds_bucket{le=\"1\"} 4\n");
    has("wait_seconds_bucket{le=\"+Inf\"} 6\n");
    has("wait_seconds_sum 73.003\n");
    has("wait_seconds_count 6\n");
    has("ttft_seconds_bucket{m=\"x\",le=\"0.02\"} 0\n");
    has("ttft_seconds_bucket{m=\"x\",le=\"0.04\"} 1\n");
    has("ttft_seconds_bucket{m=\"x\",le=\"655.36\"} 1\n");
    has("ttft_seconds_sum{m=\"x\"} 0.040\n");
    stats_free(stats);
    buf_free(&text);
}
END_TEST

START_TEST(labels_are_bounded)
{
    stats = stats_new(1);
    struct stats_shard *shard = stats_shard_of(stats, 0);
    int metric = stats_register(stats, STATS_COUNTER, "m_total", "M.", "model", NULL, 0);
    for (int i = 0; i < 5000; i++) {
        char name[32];
        int len = snprintf(name, sizeof(name), "model-%d", i);
        stats_add(shard, metric, &(struct slice){name, (size_t)len}, 1, 1);
    }
    stats_add(shard, metric, &SLICE_LIT("model-7"), 1, 1); // still its own
    has("m_total{model=\"other\"} 3000\n");
    has("m_total{model=\"model-7\"} 2\n");
    char large[1000];
    memset(large, 'x', sizeof(large));
    int other = stats_register(stats, STATS_COUNTER, "n_total", "N.", "model", NULL, 0);
    stats_add(shard, other, &(struct slice){large, sizeof(large)}, 1, 1);
    stats_add(shard, other, &SLICE_LIT("bad \xff utf-8 \xe6\x9c\x88"), 1, 1);
    has("n_total{model=\"bad ? utf-8 \xe6\x9c\x88\"} 1\n");
    ck_assert_uint_lt(text.len, 200000);
    stats_free(stats);
    buf_free(&text);
}
END_TEST

static int metric_number;

static void *write_shard(void *arg)
{
    struct stats_shard *shard = arg;
    for (int i = 0; i < 20000; i++) {
        char name[16];
        int len = snprintf(name, sizeof(name), "m%d", i % 300);
        stats_add(shard, metric_number, &(struct slice){name, (size_t)len}, 1, 1);
    }
    return NULL;
}

START_TEST(rendering_goes_beside_writing)
{
    pthread_t threads[3];
    stats = stats_new(3);
    metric_number = stats_register(stats, STATS_COUNTER, "c_total", "C.", "m", NULL, 0);
    for (size_t i = 0; i < 3; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, write_shard, stats_shard_of(stats, i)),
                         0);
    for (int i = 0; i < 20; i++) {
        (void)rendered();
        char name[16];
        snprintf(name, sizeof(name), "late_%d", i); // a plugin is loaded
        ck_assert_int_ge(stats_register(stats, STATS_COUNTER, name, "L.", "", NULL, 0), 0);
    }
    for (size_t i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    has("c_total{m=\"m299\"} 198\n");
    has("c_total{m=\"m0\"} 201\n");
    stats_free(stats);
    buf_free(&text);
}
END_TEST

TEST_MAIN("stats", shards_are_summed, histograms_cumulate, labels_are_bounded,
          rendering_goes_beside_writing)

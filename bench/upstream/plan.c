#include "upstream/plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char plan_help[] =
    "An order is a comma list, given by the request header `x-bench: ORDER`, by `?bench=ORDER` in "
    "the\n"
    "target, or by the text `bench:ORDER;` in the first 4 KiB of the body. Without one: "
    "kind=unary,\n"
    "or kind=burst when the body says \"stream\":true. Paths with /messages answer in Anthropic's\n"
    "format, all others as OpenAI chat completions; a GET gets a small answer at once.\n"
    "  kind=unary    one JSON answer: bytes=1024 (of the body), piece=N with gap_ms=M: dripped\n"
    "  kind=burst    a stream in one write: events=100, size=200 (bytes of an event)\n"
    "  kind=events   one write per event: events, size, gap_ms=0 between them\n"
    "  kind=paced    the same with gap_ms=20\n"
    "  kind=flood    a stream of total=67108864 bytes in events of size=16384, as fast as it is "
    "read\n"
    "  kind=idle     head and first event, then silence for hold_ms=0 (0: for ever), then the end\n"
    "  kind=hang     takes the request and never answers\n"
    "  kind=reset    a stream of events=0 (0: nothing at all), then a reset\n"
    "  delay_ms=0    before the answer begins     status=200\n"
    "  stamp=1       events carry " PLAN_STAMP "NANOSECONDS (CLOCK_MONOTONIC) of their sending\n"
    "  close=1       closes the connection after the answer\n";

struct text {
    char *bytes;
    size_t len, capacity;
};

static void add_bytes(struct text *text, const char *bytes, size_t len)
{
    if (text->len + len > text->capacity) {
        text->capacity = (text->len + len) * 2;
        text->bytes = realloc(text->bytes, text->capacity);
        if (!text->bytes) {
            perror("plan");
            exit(1);
        }
    }
    if (len)
        memcpy(text->bytes + text->len, bytes, len);
    text->len += len;
}

static void add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(struct text *text, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    add_bytes(text, line, (size_t)len);
}

static void add_filler(struct text *text, size_t len)
{
    static const char words[] = "some words of an answer as models send them, ";
    for (size_t i = 0; i < len; i++)
        add_bytes(text, &words[i % (sizeof words - 1)], 1);
}

// ---- events ------------------------------------------------------------------------------------

static void event_begin(const struct plan *plan, struct text *text, uint32_t number)
{
    if (plan->dialect == PLAN_MESSAGES)
        add(text, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,"
                  "\"delta\":{\"type\":\"text_delta\",\"text\":\"");
    else
        add(text, "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\","
                  "\"created\":1,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{"
                  "\"content\":\"");
    if (plan->is_stamped)
        add(text, PLAN_STAMP "%0*d ", PLAN_STAMP_DIGITS, 0);
    else
        add(text, "%u ", number);
}

static void event_end(const struct plan *plan, struct text *text)
{
    if (plan->dialect == PLAN_MESSAGES)
        add(text, "\"}}\n\n");
    else
        add(text, "\"},\"finish_reason\":null}]}\n\n");
}

static void add_chunk(struct text *text, const struct text *bytes)
{
    add(text, "%zx\r\n", bytes->len);
    add_bytes(text, bytes->bytes, bytes->len);
    add(text, "\r\n");
}

static void make_event(struct plan *plan, uint32_t number, size_t size)
{
    struct text event = {0}, end = {0}, chunk = {0};
    event_begin(plan, &event, number);
    event_end(plan, &end);
    if (event.len + end.len < size)
        add_filler(&event, size - event.len - end.len);
    add_bytes(&event, end.bytes, end.len);
    add_chunk(&chunk, &event);
    const char *stamp = plan->is_stamped ? memmem(chunk.bytes, chunk.len, PLAN_STAMP, 3) : NULL;
    plan->list[number] = (struct plan_event){
        .bytes = chunk.bytes,
        .len = (uint32_t)chunk.len,
        .stamp_at = stamp ? (uint32_t)(stamp - chunk.bytes) + 3 : 0,
    };
    free(event.bytes);
    free(end.bytes);
}

static void add_stream_head(const struct plan *plan, struct text *text)
{
    add(text,
        "HTTP/1.1 %u OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n%s\r\n",
        plan->status, plan->closes ? "connection: close\r\n" : "");
    if (plan->dialect != PLAN_MESSAGES)
        return;
    struct text start = {0};
    add(&start, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":"
                "\"msg_bench\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],"
                "\"model\":\"bench\",\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{"
                "\"input_tokens\":100,\"output_tokens\":1}}}\n\n"
                "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,"
                "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n");
    add_chunk(text, &start);
    free(start.bytes);
}

static void add_stream_tail(const struct plan *plan, struct text *text)
{
    struct text end = {0};
    if (plan->dialect == PLAN_MESSAGES)
        add(&end, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}"
                  "\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{"
                  "\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{"
                  "\"output_tokens\":200}}\n\nevent: message_stop\ndata: {\"type\":"
                  "\"message_stop\"}\n\n");
    else
        add(&end,
            "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1,"
            "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\""
            "}],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":200,\"total_tokens\":300}}"
            "\n\ndata: [DONE]\n\n");
    add_chunk(text, &end);
    add(text, "0\r\n\r\n");
    free(end.bytes);
}

// ---- whole answers -----------------------------------------------------------------------------

static void add_unary(const struct plan *plan, struct text *text, size_t size)
{
    struct text body = {0}, end = {0};
    if (plan->status >= 400) {
        add(&body, "{\"error\":{\"message\":\"");
        add(&end, "\",\"type\":\"bench_error\",\"code\":null}}");
    } else if (plan->dialect == PLAN_MESSAGES) {
        add(&body, "{\"id\":\"msg_bench\",\"type\":\"message\",\"role\":\"assistant\",\"model\":"
                   "\"bench\",\"content\":[{\"type\":\"text\",\"text\":\"");
        add(&end, "\"}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{"
                  "\"input_tokens\":100,\"output_tokens\":200}}");
    } else {
        add(&body, "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1,"
                   "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
                   "\"assistant\",\"content\":\"");
        add(&end, "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":100,"
                  "\"completion_tokens\":200,\"total_tokens\":300}}");
    }
    if (body.len + end.len < size)
        add_filler(&body, size - body.len - end.len);
    add_bytes(&body, end.bytes, end.len);
    add(text, "HTTP/1.1 %u %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n%s\r\n",
        plan->status, plan->status < 400 ? "OK" : "Error", body.len,
        plan->closes ? "connection: close\r\n" : "");
    add_bytes(text, body.bytes, body.len);
    free(body.bytes);
    free(end.bytes);
}

// ---- orders ------------------------------------------------------------------------------------

struct numbers {
    uint64_t bytes, piece, events, size, gap_ms, delay_ms, hold_ms, total, status, stamp, close;
};

static bool take_number(struct numbers *numbers, const char *name, const char *value)
{
    const struct {
        const char *name;
        uint64_t *into;
    } known[] = {
        {"bytes", &numbers->bytes},     {"piece", &numbers->piece},
        {"events", &numbers->events},   {"size", &numbers->size},
        {"gap_ms", &numbers->gap_ms},   {"delay_ms", &numbers->delay_ms},
        {"hold_ms", &numbers->hold_ms}, {"total", &numbers->total},
        {"status", &numbers->status},   {"stamp", &numbers->stamp},
        {"close", &numbers->close},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) != 0)
            continue;
        *known[i].into = strtoull(value, NULL, 10);
        return true;
    }
    return false;
}

static bool take_kind(struct plan *plan, struct numbers *numbers, const char *kind)
{
    plan->kind = PLAN_EVENTS;
    if (strcmp(kind, "unary") == 0)
        plan->kind = PLAN_UNARY;
    else if (strcmp(kind, "burst") == 0)
        plan->kind = PLAN_BURST;
    else if (strcmp(kind, "idle") == 0)
        plan->kind = PLAN_IDLE;
    else if (strcmp(kind, "hang") == 0)
        plan->kind = PLAN_HANG;
    else if (strcmp(kind, "reset") == 0) {
        plan->kind = PLAN_RESET;
        numbers->events = 0;
    } else if (strcmp(kind, "paced") == 0)
        numbers->gap_ms = 20;
    else if (strcmp(kind, "flood") == 0)
        numbers->size = 16384;
    else
        return strcmp(kind, "events") == 0;
    return true;
}

static bool read_order(struct plan *plan, struct numbers *numbers)
{
    char copy[256], *rest = copy, *word;
    bool is_flood = false;
    snprintf(copy, sizeof copy, "%s", plan->order);
    while ((word = strsep(&rest, ",")) != NULL) {
        char *value = strchr(word, '=');
        if (!value)
            return false;
        *value++ = '\0';
        is_flood |= strcmp(word, "kind") == 0 && strcmp(value, "flood") == 0;
        if (strcmp(word, "kind") == 0 ? !take_kind(plan, numbers, value)
                                      : !take_number(numbers, word, value))
            return false;
    }
    if (is_flood)
        numbers->events = numbers->total / (numbers->size ? numbers->size : 1);
    return numbers->size <= 32u << 20 && numbers->bytes <= 256u << 20;
}

static bool make_plan(struct plan *plan)
{
    struct numbers numbers = {
        .bytes = 1024, .events = 100, .size = 200, .total = 64u << 20, .status = 200};
    if (!read_order(plan, &numbers))
        return false;
    plan->status = (uint32_t)numbers.status;
    plan->piece_bytes = (uint32_t)numbers.piece;
    plan->delay_ns = numbers.delay_ms * 1000000;
    plan->gap_ns = numbers.gap_ms * 1000000;
    plan->hold_ns = numbers.hold_ms * 1000000;
    plan->events = plan->kind == PLAN_IDLE ? 1 : numbers.events;
    plan->is_stamped = numbers.stamp != 0 && plan->kind != PLAN_BURST;
    plan->closes = numbers.close != 0;
    if (plan->status >= 400 && plan->kind != PLAN_HANG)
        plan->kind = PLAN_UNARY;
    struct text head = {0}, tail = {0};
    if (plan->kind == PLAN_UNARY) {
        add_unary(plan, &head, numbers.bytes);
    } else if (plan->kind != PLAN_HANG) {
        uint32_t most = numbers.size > 4096 ? 4 : PLAN_DISTINCT;
        plan->distinct = plan->events < most ? (uint32_t)plan->events : most;
        for (uint32_t i = 0; i < plan->distinct; i++)
            make_event(plan, i, numbers.size);
        add_stream_head(plan, &head);
        add_stream_tail(plan, &tail);
    }
    if (plan->kind == PLAN_BURST) {
        for (uint64_t i = 0; i < plan->events; i++)
            add_bytes(&head, plan->list[i % plan->distinct].bytes,
                      plan->list[i % plan->distinct].len);
        add_bytes(&head, tail.bytes, tail.len);
    }
    plan->head = head.bytes;
    plan->head_len = head.len;
    plan->tail = tail.bytes;
    plan->tail_len = tail.len;
    return true;
}

static struct plan *plans[256];
static size_t plan_count;

static void free_plan(struct plan *plan)
{
    for (uint32_t i = 0; i < plan->distinct; i++)
        free(plan->list[i].bytes);
    free(plan->head);
    free(plan->tail);
    free(plan->order);
    free(plan);
}

const struct plan *plan_find(struct span order, enum plan_dialect dialect)
{
    for (size_t i = 0; i < plan_count; i++)
        if (plans[i]->dialect == dialect && strlen(plans[i]->order) == order.len &&
            memcmp(plans[i]->order, order.ptr, order.len) == 0)
            return plans[i];
    if (order.len > 200 || plan_count == sizeof plans / sizeof *plans)
        return NULL;
    struct plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return NULL;
    plan->order = strndup(order.ptr, order.len);
    plan->dialect = dialect;
    if (!plan->order || !make_plan(plan)) {
        free_plan(plan);
        return NULL;
    }
    plans[plan_count++] = plan;
    return plan;
}

void plan_free_all(void)
{
    while (plan_count)
        free_plan(plans[--plan_count]);
}

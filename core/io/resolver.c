// The look-ups of the whole process. An entry is one name: queued, being looked up, or answered
// until its time is over; queries of several loops wait on the same entry (single flight). Results
// travel to the loop as a message. One mutex guards all; it is held for pointer work and for
// loop_post only, never during a look-up or a callback.
#include "io/resolver.h"

#include "base/clock.h"
#include "base/list.h"
#include "base/map.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HOST 253
#define MAX_NAMES 4096
#define MAX_THREADS 16
#define GOOD_MS 60000
#define BAD_MS 5000

// Addresses without the padding of sockaddr_storage: 4,096 cached names stay small.
struct address {
    sa_family_t family;
    uint8_t bytes[16];
};

struct answer { // shared by an entry and the queries it was sent to; guarded by the mutex
    int err;
    unsigned references;
    size_t count;
    struct address addresses[];
};

struct entry {
    struct list node;    // of resolver->queue or resolver->answered
    struct list waiting; // queries
    struct answer *answer;
    uint64_t expires_ms;
    bool is_pending;
    char host[MAX_HOST + 1];
};

struct resolver_query {
    struct loop_message message;
    struct list node; // of entry->waiting, then of resolver->posted
    struct resolver *resolver;
    struct loop *loop;
    resolver_cb on_result;
    void *user;
    struct answer *answer; // once posted
    bool is_posted;        // under the mutex
    bool is_cancelled;     // loop thread only, once posted
};

struct resolver {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct map *entries;
    struct list queue;    // entries to look up
    struct list answered; // entries with an answer, least recently used first
    struct list posted;   // queries on their way to a loop
    size_t pending_count, answered_count;
    struct resolver_counters counters;
    resolver_lookup_fn look_up;
    pthread_t threads[MAX_THREADS];
    size_t thread_count;
    bool is_stopping;
};

static void *run_thread(void *arg);
static void deliver(struct loop_message *message);

// ---- answers

static void release_answer(struct answer *answer)
{
    if (answer != NULL && --answer->references == 0)
        free(answer);
}

static struct answer *pack_answer(const struct resolver_result *result)
{
    size_t count = result->err ? 0 : result->count;
    if (count > RESOLVER_MAX_ADDRESSES)
        count = RESOLVER_MAX_ADDRESSES;
    struct answer *answer = malloc(sizeof *answer + count * sizeof(struct address));
    if (answer == NULL)
        return NULL;
    *answer = (struct answer){.err = result->err, .references = 1};
    for (size_t i = 0; i < count; i++) {
        const struct sockaddr_storage *from = &result->addresses[i];
        struct address *to = &answer->addresses[answer->count];
        to->family = from->ss_family;
        if (from->ss_family == AF_INET)
            memcpy(to->bytes, &((const struct sockaddr_in *)(const void *)from)->sin_addr, 4);
        else if (from->ss_family == AF_INET6)
            memcpy(to->bytes, &((const struct sockaddr_in6 *)(const void *)from)->sin6_addr, 16);
        else
            continue;
        answer->count++;
    }
    if (answer->err == 0 && answer->count == 0)
        answer->err = GW_EDNS;
    return answer;
}

static void unpack_address(const struct address *from, struct sockaddr_storage *to)
{
    memset(to, 0, sizeof *to);
    to->ss_family = from->family;
    if (from->family == AF_INET)
        memcpy(&((struct sockaddr_in *)(void *)to)->sin_addr, from->bytes, 4);
    else
        memcpy(&((struct sockaddr_in6 *)(void *)to)->sin6_addr, from->bytes, 16);
}

static void unpack_answer(const struct answer *answer, struct resolver_result *result)
{
    result->err = answer->err;
    result->count = answer->count;
    for (size_t i = 0; i < answer->count; i++)
        unpack_address(&answer->addresses[i], &result->addresses[i]);
}

// ---- life

struct resolver *resolver_new(size_t threads, resolver_lookup_fn look_up)
{
    struct resolver *resolver = calloc(1, sizeof *resolver);
    if (resolver == NULL)
        return NULL;
    resolver->entries = map_new();
    if (resolver->entries == NULL) {
        free(resolver);
        return NULL;
    }
    pthread_mutex_init(&resolver->mutex, NULL);
    pthread_cond_init(&resolver->wake, NULL);
    list_init(&resolver->queue);
    list_init(&resolver->answered);
    list_init(&resolver->posted);
    resolver->look_up = look_up;
    if (threads == 0)
        threads = 2;
    for (size_t i = 0; i < threads && i < MAX_THREADS; i++) {
        if (pthread_create(&resolver->threads[i], NULL, run_thread, resolver) != 0)
            break;
        resolver->thread_count++;
    }
    if (resolver->thread_count == 0) {
        resolver_free(resolver);
        return NULL;
    }
    return resolver;
}

static void free_queries(struct list *head)
{
    struct list *node;
    while ((node = list_pop_front(head)) != NULL) {
        struct resolver_query *query = list_entry(node, struct resolver_query, node);
        release_answer(query->answer);
        free(query);
    }
}

static void free_entry(void *value)
{
    struct entry *entry = value;
    free_queries(&entry->waiting);
    release_answer(entry->answer);
    free(entry);
}

void resolver_free(struct resolver *resolver)
{
    if (resolver == NULL)
        return;
    pthread_mutex_lock(&resolver->mutex);
    resolver->is_stopping = true;
    pthread_cond_broadcast(&resolver->wake);
    pthread_mutex_unlock(&resolver->mutex);
    for (size_t i = 0; i < resolver->thread_count; i++)
        pthread_join(resolver->threads[i], NULL);
    free_queries(&resolver->posted);
    map_free(resolver->entries, free_entry);
    pthread_cond_destroy(&resolver->wake);
    pthread_mutex_destroy(&resolver->mutex);
    free(resolver);
}

struct resolver_counters resolver_counters(struct resolver *resolver)
{
    pthread_mutex_lock(&resolver->mutex);
    struct resolver_counters counters = resolver->counters;
    pthread_mutex_unlock(&resolver->mutex);
    return counters;
}

// ---- asking

static bool read_literal(const char *host, struct resolver_result *result)
{
    struct address address;
    if (inet_pton(AF_INET, host, address.bytes) == 1)
        address.family = AF_INET;
    else if (inet_pton(AF_INET6, host, address.bytes) == 1)
        address.family = AF_INET6;
    else
        return false;
    result->err = 0;
    result->count = 1;
    unpack_address(&address, &result->addresses[0]);
    return true;
}

static void drop_entry(struct resolver *resolver, struct entry *entry)
{
    list_remove(&entry->node);
    resolver->answered_count--;
    map_take(resolver->entries, slice_str(entry->host));
    free_entry(entry);
}

static struct entry *add_entry(struct resolver *resolver, const char *host)
{
    if (resolver->pending_count >= MAX_NAMES)
        return NULL;
    struct entry *entry = calloc(1, sizeof *entry);
    if (entry == NULL)
        return NULL;
    memcpy(entry->host, host, strlen(host) + 1);
    list_init(&entry->waiting);
    list_init(&entry->node);
    entry->is_pending = true;
    if (map_put(resolver->entries, slice_str(host), entry, NULL)) {
        free(entry);
        return NULL;
    }
    if (resolver->pending_count + resolver->answered_count >= MAX_NAMES && resolver->answered_count)
        drop_entry(resolver, list_entry(resolver->answered.next, struct entry, node));
    list_push_back(&resolver->queue, &entry->node);
    resolver->pending_count++;
    pthread_cond_signal(&resolver->wake);
    return entry;
}

int resolver_start(struct resolver *resolver, struct loop *loop, struct slice host,
                   resolver_cb on_result, void *user, struct resolver_query **out)
{
    *out = NULL;
    char name[MAX_HOST + 1];
    if (host.len == 0 || host.len > MAX_HOST || memchr(host.ptr, '\0', host.len) != NULL)
        return GW_EINVAL;
    for (size_t i = 0; i < host.len; i++) {
        char c = host.ptr[i];
        name[i] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    }
    name[host.len] = '\0';
    struct resolver_result result;
    if (read_literal(name, &result)) {
        on_result(user, &result);
        return 0;
    }

    pthread_mutex_lock(&resolver->mutex);
    resolver->counters.asked++;
    struct entry *entry = map_get(resolver->entries, slice_of(name, host.len));
    if (entry != NULL && !entry->is_pending && clock_boot_ms() >= entry->expires_ms) {
        drop_entry(resolver, entry);
        entry = NULL;
    }
    if (entry != NULL && !entry->is_pending) {
        list_remove(&entry->node);
        list_push_back(&resolver->answered, &entry->node);
        unpack_answer(entry->answer, &result);
        resolver->counters.answered_at_once++;
        pthread_mutex_unlock(&resolver->mutex);
        on_result(user, &result);
        return 0;
    }
    int err = 0;
    struct resolver_query *query = calloc(1, sizeof *query);
    if (query == NULL)
        err = GW_ENOMEM;
    else if (entry == NULL && (entry = add_entry(resolver, name)) == NULL)
        err = resolver->pending_count >= MAX_NAMES ? GW_EFULL : GW_ENOMEM;
    if (err == 0) {
        query->message.deliver = deliver;
        query->resolver = resolver;
        query->loop = loop;
        query->on_result = on_result;
        query->user = user;
        list_push_back(&entry->waiting, &query->node);
        *out = query;
        query = NULL;
    }
    pthread_mutex_unlock(&resolver->mutex);
    free(query);
    return err;
}

void resolver_cancel(struct resolver_query *query)
{
    struct resolver *resolver = query->resolver;
    pthread_mutex_lock(&resolver->mutex);
    bool is_posted = query->is_posted;
    if (!is_posted)
        list_remove(&query->node);
    pthread_mutex_unlock(&resolver->mutex);
    if (is_posted)
        query->is_cancelled = true; // the loop's queue holds it: deliver frees it
    else
        free(query);
}

static void deliver(struct loop_message *message)
{
    struct resolver_query *query = list_entry(message, struct resolver_query, message);
    struct resolver *resolver = query->resolver;
    struct resolver_result result;
    pthread_mutex_lock(&resolver->mutex);
    list_remove(&query->node);
    unpack_answer(query->answer, &result);
    release_answer(query->answer);
    pthread_mutex_unlock(&resolver->mutex);
    resolver_cb on_result = query->is_cancelled ? NULL : query->on_result;
    void *user = query->user;
    free(query);
    if (on_result != NULL)
        on_result(user, &result);
}

// ---- the threads

static int look_up_system(const char *host, struct resolver_result *result)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    if (getaddrinfo(host, NULL, &hints, &found) != 0)
        return GW_EDNS;
    for (const struct addrinfo *at = found; at != NULL; at = at->ai_next) {
        if (at->ai_addrlen > sizeof result->addresses[0] || result->count >= RESOLVER_MAX_ADDRESSES)
            continue;
        memcpy(&result->addresses[result->count++], at->ai_addr, at->ai_addrlen);
    }
    freeaddrinfo(found);
    return 0;
}

// Stores the answer and sends it to all that wait. Mutex held.
static void answer_entry(struct resolver *resolver, struct entry *entry, struct answer *answer)
{
    entry->is_pending = false;
    entry->answer = answer;
    entry->expires_ms = clock_boot_ms() + (answer->err ? BAD_MS : GOOD_MS);
    resolver->pending_count--;
    resolver->answered_count++;
    list_push_back(&resolver->answered, &entry->node);
    if (answer->err)
        resolver->counters.failed++;
    struct list *node;
    while ((node = list_pop_front(&entry->waiting)) != NULL) {
        struct resolver_query *query = list_entry(node, struct resolver_query, node);
        query->answer = answer;
        answer->references++;
        query->is_posted = true;
        list_push_back(&resolver->posted, &query->node);
        // Under the mutex: once it is released the query may be cancelled and its loop freed.
        loop_post(query->loop, &query->message);
    }
}

static void *run_thread(void *arg)
{
    struct resolver *resolver = arg;
    pthread_mutex_lock(&resolver->mutex);
    for (;;) {
        struct list *node = NULL;
        while (!resolver->is_stopping && (node = list_pop_front(&resolver->queue)) == NULL)
            pthread_cond_wait(&resolver->wake, &resolver->mutex);
        if (resolver->is_stopping)
            break;
        struct entry *entry = list_entry(node, struct entry, node);
        resolver->counters.look_ups++;
        pthread_mutex_unlock(&resolver->mutex);

        struct resolver_result result = {0};
        // The name of a pending entry does not change, and a pending entry is not freed.
        result.err = (resolver->look_up ? resolver->look_up : look_up_system)(entry->host, &result);
        struct answer *answer;
        while ((answer = pack_answer(&result)) == NULL)
            sched_yield(); // a few hundred bytes: without them nothing else goes on either

        pthread_mutex_lock(&resolver->mutex);
        answer_entry(resolver, entry, answer);
    }
    pthread_mutex_unlock(&resolver->mutex);
    return NULL;
}

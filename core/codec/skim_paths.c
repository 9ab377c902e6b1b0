// Makes the trees of declared paths, keeps those of constant specs, and sets up a scanner.
#include "codec/skim_machine.h"
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define TABLE_SIZE (2u * SKIM_MAX_PLANS) // open addressing, at most half full

static uint32_t parse_index(const char *name, size_t len)
{
    if (len == 0 || len > 9 || (len > 1 && name[0] == '0'))
        return INDEX_NONE;
    uint32_t index = 0;
    for (size_t i = 0; i < len; i++) {
        if (name[i] < '0' || name[i] > '9')
            return INDEX_NONE;
        index = index * 10 + (uint32_t)(name[i] - '0');
    }
    return index;
}

static uint8_t node_child(struct skim_plan *plan, uint8_t parent, const char *name, size_t len)
{
    uint8_t *link = &plan->nodes[parent].first_child;
    for (; *link != NODE_NONE; link = &plan->nodes[*link].next)
        if (plan->nodes[*link].len == len && memcmp(plan->nodes[*link].name, name, len) == 0)
            return *link;
    gw_require(plan->node_count < SKIM_MAX_NODES && len <= SKIM_MAX_NAME);
    uint8_t id = plan->node_count++;
    *link = id;
    plan->nodes[id] =
        (struct skim_node){.name = name, .len = (uint8_t)len, .index = parse_index(name, len)};
    return id;
}

static void add_path(struct skim_plan *plan, const char *path, size_t at)
{
    uint32_t bit = (uint32_t)1 << at;
    uint8_t node = NODE_ROOT;
    for (;;) {
        const char *dot = strchr(path, '.');
        size_t len = dot ? (size_t)(dot - path) : strlen(path);
        node = node_child(plan, node, path, len);
        plan->nodes[node].below |= bit;
        if (!dot)
            break;
        path = dot + 1;
    }
    plan->nodes[node].paths |= bit;
}

static void make_plan(struct skim_plan *plan, const struct skim_spec *spec)
{
    plan->nodes[NODE_NONE] = plan->nodes[NODE_ROOT] = (struct skim_node){.index = INDEX_NONE};
    plan->node_count = NODE_ROOT + 1;
    for (size_t i = 0; i < spec->path_count; i++)
        add_path(plan, spec->paths[i], i);
}

// ---- the plans of constant specs: made once, never freed, read without a lock ----

struct known {
    const char *const *paths;
    size_t path_count;
    struct skim_plan plan;
};
static struct known known_plans[SKIM_MAX_PLANS];
static size_t known_count;
static struct known *_Atomic known_table[TABLE_SIZE];
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;

// The entry of a spec, or the free place where it belongs (*place).
static const struct known *find_known(const struct skim_spec *spec, size_t *place)
{
    size_t at = ((uintptr_t)spec->paths >> 3) * 0x9e3779b1u + spec->path_count;
    for (;; at++) {
        at %= TABLE_SIZE;
        const struct known *known = atomic_load_explicit(&known_table[at], memory_order_acquire);
        if (!known) {
            *place = at;
            return NULL;
        }
        if (known->paths == spec->paths && known->path_count == spec->path_count)
            return known;
    }
}

static const struct skim_plan *plan_of(const struct skim_spec *spec)
{
    size_t place;
    const struct known *known = find_known(spec, &place);
    if (known)
        return &known->plan;
    pthread_mutex_lock(&known_lock);
    known = find_known(spec, &place); // another thread may have been first
    if (!known) {
        gw_require(known_count < SKIM_MAX_PLANS);
        struct known *made = &known_plans[known_count++];
        made->paths = spec->paths;
        made->path_count = spec->path_count;
        make_plan(&made->plan, spec);
        atomic_store_explicit(&known_table[place], made, memory_order_release);
        known = made;
    }
    pthread_mutex_unlock(&known_lock);
    return &known->plan;
}

void skim_init(struct skim *skim, const struct skim_spec *spec)
{
    gw_require(spec->path_count <= SKIM_MAX_PATHS);
    struct machine *m = machine_of(skim);
    if (spec->plan)
        make_plan(spec->plan, spec);
    m->nodes = spec->plan ? spec->plan->nodes : plan_of(spec)->nodes;
    m->is_lenient = spec->is_lenient;
    m->max_depth = spec->max_depth && spec->max_depth < SKIM_MAX_DEPTH ? (uint8_t)spec->max_depth
                                                                       : SKIM_MAX_DEPTH;
    m->max_members = spec->max_members ? spec->max_members : 100000;
    skim->path_count = spec->path_count;
    memset(skim->spans, 0, sizeof(skim->spans[0]) * spec->path_count);
    skim->root_type = SKIM_ABSENT;
    skim->root_start = skim->root_end = skim->offset = skim->err_offset = 0;
    skim->err = 0;
    skim->err_text = NULL;
    // Everything else is set before it is read.
    m->state = STATE_VALUE;
    m->depth = 0;
    m->members = 0;
    m->value_paths = 0;
    m->high = 0;
    m->wants_name = false;
}

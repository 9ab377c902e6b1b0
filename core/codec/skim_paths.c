// Makes the tree of declared paths and a fresh scanner.
#include "codec/skim_machine.h"
#include <string.h>

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

static uint8_t node_child(struct machine *m, uint8_t parent, const char *name, size_t len)
{
    uint8_t *link = &m->nodes[parent].first_child;
    for (; *link != NODE_NONE; link = &m->nodes[*link].next)
        if (m->nodes[*link].len == len && memcmp(m->nodes[*link].name, name, len) == 0)
            return *link;
    gw_require(m->node_count < SKIM_MAX_NODES && len <= SKIM_MAX_NAME);
    uint8_t id = m->node_count++;
    *link = id;
    m->nodes[id] =
        (struct node){.name = name, .len = (uint8_t)len, .index = parse_index(name, len)};
    return id;
}

static void add_path(struct machine *m, const char *path, size_t at)
{
    uint32_t bit = (uint32_t)1 << at;
    uint8_t node = NODE_ROOT;
    for (;;) {
        const char *dot = strchr(path, '.');
        size_t len = dot ? (size_t)(dot - path) : strlen(path);
        node = node_child(m, node, path, len);
        m->nodes[node].below |= bit;
        if (!dot)
            break;
        path = dot + 1;
    }
    m->nodes[node].paths |= bit;
}

void skim_reset(struct skim *skim)
{
    struct machine *m = machine_of(skim);
    memset(skim->spans, 0, sizeof(skim->spans[0]) * skim->spec.path_count);
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

void skim_init(struct skim *skim, const struct skim_spec *spec)
{
    gw_require(spec->path_count <= SKIM_MAX_PATHS);
    struct machine *m = machine_of(skim);
    skim->spec = *spec;
    memset(m, 0, offsetof(struct machine, name));
    m->is_lenient = spec->is_lenient;
    m->max_depth = spec->max_depth && spec->max_depth < SKIM_MAX_DEPTH ? (uint8_t)spec->max_depth
                                                                       : SKIM_MAX_DEPTH;
    m->max_members = spec->max_members ? spec->max_members : 100000;
    m->nodes[NODE_NONE] = m->nodes[NODE_ROOT] = (struct node){.index = INDEX_NONE};
    m->node_count = NODE_ROOT + 1;
    for (size_t i = 0; i < spec->path_count; i++)
        add_path(m, spec->paths[i], i);
    skim_reset(skim);
}

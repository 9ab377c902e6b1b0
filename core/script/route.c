// Plugin routes: which one a path belongs to. Paths are compared segment by segment, fixed segments
// before parameters. What flow holds (struct script_route) is a name that outlives generations.
#include "script/route.h"
#include <stdlib.h>
#include <string.h>

// ---- building

// Splits "/a/{b}" into segments; 0 when there are too many.
size_t route_split(struct slice path, struct slice *segments)
{
    size_t count = 0;
    if (path.len == 0 || path.ptr[0] != '/')
        return 0;
    for (size_t at = 1;; at++) {
        size_t end = at;
        while (end < path.len && path.ptr[end] != '/')
            end++;
        if (count == ROUTE_MAX_SEGMENTS)
            return 0;
        segments[count++] = slice_of(path.ptr + at, end - at);
        at = end;
        if (end >= path.len)
            return count;
    }
}

static int by_order(const void *left, const void *right)
{
    const struct route_entry *a = left, *b = right;
    if (a->segment_count != b->segment_count)
        return a->segment_count < b->segment_count ? -1 : 1;
    for (size_t i = 0; i < a->segment_count; i++)
        if (a->is_param[i] != b->is_param[i])
            return a->is_param[i] ? 1 : -1;
    if (a->plugin->index != b->plugin->index)
        return a->plugin->index < b->plugin->index ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static struct script_route *intern(struct script *script, const char *plugin, struct slice method,
                                   struct slice pattern)
{
    char key[1200];
    int len =
        snprintf(key, sizeof key, "%s %.*s %.*s", plugin, SLICE_FMT(method), SLICE_FMT(pattern));
    if (len < 0 || (size_t)len >= sizeof key)
        return NULL;
    struct slice name = slice_of(key, (size_t)len);
    struct script_route *route = map_get(script->routes, name);
    if (route)
        return route;
    route = calloc(1, sizeof *route + (size_t)len + 1);
    if (!route)
        return NULL;
    char *text = (char *)(route + 1);
    memcpy(text, key, (size_t)len);
    route->name = slice_of(text, (size_t)len);
    route->plugin = slice_of(text, strlen(plugin));
    route->pattern = slice_of(text + (size_t)len - pattern.len, pattern.len);
    if (map_put(script->routes, route->name, route, NULL) != 0) {
        free(route);
        return NULL;
    }
    return route;
}

int route_table_build(struct script_generation *generation, struct buf *problems)
{
    size_t count = 0;
    for (size_t i = 0; i < generation->plugin_count; i++)
        count += generation->plugins[i].def->route_count;
    struct route_table *table = calloc(1, sizeof *table + count * sizeof *table->entries);
    if (!table)
        return GW_ENOMEM;
    generation->routes = table;
    for (size_t i = 0; i < generation->plugin_count; i++) {
        struct plugin_rt *plugin = &generation->plugins[i];
        for (size_t n = 0; n < plugin->def->route_count; n++) {
            struct route_entry *entry = &table->entries[table->count++];
            entry->plugin = plugin;
            entry->def = &plugin->def->routes[n];
            entry->index = n;
            entry->segment_count = route_split(entry->def->path, entry->segments);
            entry->route =
                intern(generation->script, plugin->name, entry->def->method_text, entry->def->path);
            if (entry->segment_count == 0 || !entry->route) {
                (void)!buf_printf(problems, "%s: route %.*s: too long or too many segments\n",
                                  plugin->name, SLICE_FMT(entry->def->path));
                return GW_EINVAL;
            }
            for (size_t s = 0; s < entry->segment_count; s++) {
                struct slice *segment = &entry->segments[s];
                if (segment->len >= 2 && segment->ptr[0] == '{' &&
                    segment->ptr[segment->len - 1] == '}') {
                    entry->is_param[s] = true;
                    *segment = slice_of(segment->ptr + 1, segment->len - 2);
                }
            }
        }
        struct script_route *missing =
            intern(generation->script, plugin->name, SLICE_LIT("*"), SLICE_LIT("*"));
        if (!missing)
            return GW_ENOMEM;
        for (size_t n = table->count - plugin->def->route_count; n < table->count; n++)
            table->entries[n].missing = missing;
    }
    qsort(table->entries, table->count, sizeof *table->entries, by_order);
    size_t at = 0;
    for (size_t length = 0; length <= ROUTE_MAX_SEGMENTS + 1; length++) {
        while (at < table->count && table->entries[at].segment_count < length)
            at++;
        table->first[length] = at;
    }
    return 0;
}

void route_table_free(struct route_table *table)
{
    free(table);
}

void route_table_publish(struct script_generation *generation)
{
    struct script *script = generation->script;
    size_t iter = 0;
    void *value;
    while (map_next(script->routes, &iter, NULL, &value)) {
        struct script_route *route = value;
        route->entry = NULL;
        route->missing = NULL;
        route->generation = NULL;
    }
    for (size_t i = 0; i < generation->routes->count; i++) {
        const struct route_entry *entry = &generation->routes->entries[i];
        entry->route->entry = entry;
        entry->route->generation = generation;
        entry->route->max_body = entry->def->max_body
                                     ? entry->def->max_body
                                     : (uint64_t)script->options.conf->admin_body_bytes;
    }
    for (size_t i = 0; i < generation->plugin_count; i++) {
        struct script_route *route =
            intern(script, generation->plugins[i].name, SLICE_LIT("*"), SLICE_LIT("*"));
        if (!route)
            continue;
        route->is_missing = true;
        route->missing = &generation->plugins[i];
        route->generation = generation;
        // A body must not hide the 404 behind a 413.
        route->max_body = (uint64_t)script->options.conf->admin_body_bytes;
    }
}

void route_names_free(struct script *script)
{
    map_free(script->routes, free);
}

// ---- finding

// Percent-decodes one segment of a request into out; false when malformed.
bool route_decode_segment(struct slice segment, char *out, size_t *len)
{
    static const char HEX[] = "0123456789abcdef";
    *len = 0;
    if (segment.len > ROUTE_MAX_SEGMENT)
        return false;
    for (size_t i = 0; i < segment.len; i++) {
        unsigned char byte = (unsigned char)segment.ptr[i];
        if (byte == '%') {
            if (i + 2 >= segment.len)
                return false;
            const char *high = memchr(HEX, segment.ptr[i + 1] | 0x20, 16);
            const char *low = memchr(HEX, segment.ptr[i + 2] | 0x20, 16);
            if (!high || !low)
                return false;
            byte = (unsigned char)((high - HEX) << 4 | (low - HEX));
            if (byte == 0)
                return false;
            i += 2;
        }
        out[(*len)++] = (char)byte;
    }
    return true;
}

static bool matches(const struct route_entry *entry, const struct slice *segments)
{
    char text[ROUTE_MAX_SEGMENT];
    size_t len;
    for (size_t i = 0; i < entry->segment_count; i++) {
        if (entry->is_param[i]) {
            if (segments[i].len == 0)
                return false;
            continue;
        }
        if (slice_eq(entry->segments[i], segments[i]))
            continue;
        if (!memchr(segments[i].ptr, '%', segments[i].len) ||
            !route_decode_segment(segments[i], text, &len) ||
            !slice_eq(entry->segments[i], slice_of(text, len)))
            return false;
    }
    return true;
}

static void add_method(struct script *script, struct slice method)
{
    size_t len = strlen(script->allow);
    if (strstr(script->allow, "GET") && slice_is(method, "GET"))
        return;
    if (len + method.len + 3 < sizeof script->allow)
        snprintf(script->allow + len, sizeof script->allow - len, "%s%.*s", len ? ", " : "",
                 SLICE_FMT(method));
}

const struct script_route *script_route_find(struct script *script, enum http1_method method,
                                             struct slice path, struct slice *allow)
{
    struct slice segments[ROUTE_MAX_SEGMENTS];
    size_t count = route_split(path, segments);
    script->allow[0] = '\0';
    *allow = SLICE_LIT("");
    if (count == 0 || !script->current)
        return NULL;
    const struct route_table *table = script->current->routes;
    const struct script_route *head = NULL;
    for (size_t i = table->first[count]; i < table->first[count + 1]; i++) {
        const struct route_entry *entry = &table->entries[i];
        if (!matches(entry, segments))
            continue;
        if (entry->def->method == method)
            return entry->route;
        if (method == HTTP1_HEAD && entry->def->method == HTTP1_GET && !head)
            head = entry->route;
        add_method(script, entry->def->method_text);
    }
    if (head)
        return head;
    *allow = slice_str(script->allow);
    return NULL;
}

const struct script_route *script_route_missing(struct script *script, struct slice path)
{
    struct slice segments[ROUTE_MAX_SEGMENTS];
    size_t count = route_split(path, segments);
    if (count == 0 || !script->current)
        return NULL;
    // The plugin that shares most leading fixed segments.
    const struct route_table *table = script->current->routes;
    const struct route_entry *best = NULL;
    size_t best_length = 0;
    for (size_t i = 0; i < table->count; i++) {
        const struct route_entry *entry = &table->entries[i];
        size_t same = 0;
        while (same < count && same < entry->segment_count && !entry->is_param[same] &&
               slice_eq(entry->segments[same], segments[same]))
            same++;
        if (same > best_length && entry->plugin->render_error_ref != LUA_NOREF) {
            best = entry;
            best_length = same;
        }
    }
    return best ? best->missing : NULL;
}

uint64_t script_route_max_body(const struct script_route *route)
{
    return route->max_body;
}

bool script_route_is_admin(const struct script_route *route)
{
    return route->entry && route->entry->def->auth == PLUGIN_AUTH_ADMIN;
}

struct slice script_route_pattern(const struct script_route *route)
{
    return route->pattern;
}

struct slice script_route_plugin(const struct script_route *route)
{
    return route->plugin;
}

// The table of configuration keys and how a value is set and shown. schema/config_keys.h is read
// three times: for the struct (conf.h), for the table of keys and for the defaults.
#include "state/conf.h"
#include "base/log.h"
#include "base/money.h"
#include "codec/json.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#define TEXT_MAX (1 << 20)
#define LIST_MAX 4096

static const struct conf_key keys[] = {
#define CONF_TEXT(field, path, env, def, help)                                                     \
    {CONF_TYPE_TEXT, path, env, def, 0, 0, help, offsetof(struct conf, field)},
#define CONF_INT(field, path, env, def, min, max, help)                                            \
    {CONF_TYPE_INT, path, env, #def, min, max, help, offsetof(struct conf, field)},
#define CONF_MS(field, path, env, def, min, max, help)                                             \
    {CONF_TYPE_MS, path, env, #def, min, max, help, offsetof(struct conf, field)},
#define CONF_BOOL(field, path, env, def, help)                                                     \
    {CONF_TYPE_BOOL, path, env, #def, 0, 1, help, offsetof(struct conf, field)},
#define CONF_MONEY(field, path, env, def, help)                                                    \
    {CONF_TYPE_MONEY, path, env, def, 0, INT64_MAX, help, offsetof(struct conf, field)},
#define CONF_LIST(field, path, env, help)                                                          \
    {CONF_TYPE_LIST, path, env, "", 0, 0, help, offsetof(struct conf, field)},
#define CONF_SECRET(field, path, env, help)                                                        \
    {CONF_TYPE_SECRET, path, env, "", 0, 0, help, offsetof(struct conf, field)},
#include "../../schema/config_keys.h"
#undef CONF_TEXT
#undef CONF_INT
#undef CONF_MS
#undef CONF_BOOL
#undef CONF_MONEY
#undef CONF_LIST
#undef CONF_SECRET
};
#define KEY_COUNT (sizeof(keys) / sizeof(keys[0]))

// Texts that must be one of a few words.
static const struct {
    const char *path;
    const char *words[5];
} choices[] = {
    {"durability", {"power", "process"}},
    {"disconnect", {"cancel", "drain"}},
    {"unpriced_models", {"deny", "free"}},
    {"log.level", {"debug", "info", "warn", "error"}},
};

const struct conf_key *conf_keys(size_t *count)
{
    *count = KEY_COUNT;
    return keys;
}

const struct conf_key *conf_key_find(struct slice path)
{
    for (size_t i = 0; i < KEY_COUNT; i++)
        if (slice_is(path, keys[i].path))
            return &keys[i];
    return NULL;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

// Levenshtein's distance; both texts are at most 63 bytes.
static size_t edit_distance(struct slice a, struct slice b)
{
    size_t row[64];
    for (size_t j = 0; j <= b.len; j++)
        row[j] = j;
    for (size_t i = 1; i <= a.len; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.len; j++) {
            size_t best = diagonal + (lower(a.ptr[i - 1]) != lower(b.ptr[j - 1]));
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[b.len];
}

const char *conf_key_suggest(struct slice path)
{
    const char *best = NULL;
    if (path.len == 0 || path.len > 63)
        return NULL;
    size_t best_distance = path.len / 3 + 1;
    for (size_t i = 0; i < KEY_COUNT; i++) {
        // The whole path, its last part (someone wrote "port" at the top) and the environment's
        // name.
        const char *dot = strrchr(keys[i].path, '.');
        const char *names[] = {keys[i].path, dot ? dot + 1 : keys[i].path, keys[i].env};
        for (size_t k = 0; k < 3; k++) {
            struct slice name = slice_str(names[k]);
            if (name.len == 0 || name.len > 63)
                continue;
            size_t distance = edit_distance(path, name) + (k == 1 && dot ? 1 : 0);
            if (distance < best_distance) {
                best_distance = distance;
                best = keys[i].path;
            }
        }
    }
    return best;
}

static void *field_of(const struct conf *conf, const struct conf_key *key)
{
    return (char *)conf + key->offset;
}

int conf_new(struct conf **out)
{
    struct conf *conf = calloc(1, sizeof(*conf));
    if (!conf)
        return GW_ENOMEM;
    conf->arena = arena_new(8192);
    if (!conf->arena) {
        free(conf);
        return GW_ENOMEM;
    }
    int64_t credit = 0;
#define CONF_TEXT(field, path, env, def, help) conf->field = SLICE_LIT(def);
#define CONF_INT(field, path, env, def, min, max, help) conf->field = def;
#define CONF_MS(field, path, env, def, min, max, help) conf->field = def;
#define CONF_BOOL(field, path, env, def, help) conf->field = def;
#define CONF_MONEY(field, path, env, def, help)                                                    \
    gw_require(money_parse(SLICE_LIT(def), &credit) == 0);                                         \
    conf->field = credit;
#define CONF_LIST(field, path, env, help)
#define CONF_SECRET(field, path, env, help)
#include "../../schema/config_keys.h"
#undef CONF_TEXT
#undef CONF_INT
#undef CONF_MS
#undef CONF_BOOL
#undef CONF_MONEY
#undef CONF_LIST
#undef CONF_SECRET
    conf->upstreams_json = conf->file = conf->dir = SLICE_LIT("");
    *out = conf;
    return 0;
}

static void drop_secret(struct secret **place)
{
    if (!*place)
        return;
    log_forget_secret(secret_reveal(*place));
    secret_unref(*place);
    *place = NULL;
}

void conf_free(struct conf *conf)
{
    if (!conf)
        return;
    for (size_t i = 0; i < KEY_COUNT; i++)
        if (keys[i].type == CONF_TYPE_SECRET)
            drop_secret(field_of(conf, &keys[i]));
    arena_free(conf->arena);
    free(conf);
}

static int set_text(struct conf *conf, const struct conf_key *key, struct slice text, char *why,
                    size_t why_size)
{
    for (size_t i = 0; i < sizeof(choices) / sizeof(choices[0]); i++) {
        if (strcmp(choices[i].path, key->path) != 0)
            continue;
        bool is_known = false;
        int len = snprintf(why, why_size, "%s must be one of", key->path);
        for (size_t k = 0; choices[i].words[k]; k++) {
            is_known = is_known || slice_is(text, choices[i].words[k]);
            if (len > 0 && (size_t)len < why_size)
                len += snprintf(why + len, why_size - (size_t)len, "%s %s", k ? "," : "",
                                choices[i].words[k]);
        }
        if (!is_known)
            return GW_EINVAL;
    }
    if (text.len && memchr(text.ptr, '\0', text.len)) {
        snprintf(why, why_size, "%s must not hold a NUL byte", key->path);
        return GW_EINVAL;
    }
    char *copy = arena_copyz(conf->arena, text);
    if (!copy)
        return GW_ENOMEM;
    *(struct slice *)field_of(conf, key) = slice_of(copy, text.len);
    return 0;
}

// A whole number, also written as 1e6 or 5.0.
static int parse_whole(struct slice text, int64_t *out)
{
    unsigned long long magnitude = 0;
    bool is_negative = slice_starts(text, "-");
    if (slice_to_u64(slice_from(text, is_negative), INT64_MAX, &magnitude) == 0) {
        *out = is_negative ? -(int64_t)magnitude : (int64_t)magnitude;
        return 0;
    }
    int64_t nano = 0;
    int err = money_parse(text, &nano);
    if (err == 0 && nano % MONEY_USD)
        err = GW_EINVAL;
    *out = nano / MONEY_USD;
    return err;
}

static int set_whole(struct conf *conf, const struct conf_key *key, struct slice text, char *why,
                     size_t why_size)
{
    int64_t value = 0;
    int err = parse_whole(text, &value);
    if (err || value < key->min || value > key->max) {
        snprintf(why, why_size, "%s must be a whole number from %lld to %lld", key->path,
                 (long long)key->min, (long long)key->max);
        return GW_EINVAL;
    }
    *(int64_t *)field_of(conf, key) = value;
    return 0;
}

static void format_seconds(int64_t ms, char out[32])
{
    if (ms > INT64_MAX / 1000000)
        ms = INT64_MAX / 1000000;
    money_format(ms * 1000000, out, 32); // milliseconds are 1e6 nano-units of a second
}

static int set_seconds(struct conf *conf, const struct conf_key *key, struct slice text, char *why,
                       size_t why_size)
{
    int64_t nano = 0;
    int err = money_parse(text, &nano);
    int64_t ms = nano / 1000000;
    if (err || nano % 1000000 || ms < key->min || ms > key->max) {
        char min[32], max[32];
        format_seconds(key->min, min);
        format_seconds(key->max, max);
        snprintf(why, why_size, "%s must be seconds from %s to %s (to the millisecond)", key->path,
                 min, max);
        return GW_EINVAL;
    }
    *(int64_t *)field_of(conf, key) = ms;
    return 0;
}

static int set_bool(struct conf *conf, const struct conf_key *key, struct slice text, char *why,
                    size_t why_size)
{
    static const char *const words[] = {"false", "true", "0", "1", "no", "yes", "off", "on"};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (slice_is_nocase(text, words[i])) {
            *(bool *)field_of(conf, key) = i & 1;
            return 0;
        }
    }
    snprintf(why, why_size, "%s must be true or false", key->path);
    return GW_EINVAL;
}

static int set_list(struct conf *conf, const struct conf_key *key, struct slice text, char *why,
                    size_t why_size)
{
    size_t count = 0;
    for (size_t i = 0; i < text.len; i++)
        count += text.ptr[i] == ',';
    if (count >= LIST_MAX) {
        snprintf(why, why_size, "%s holds more than %d entries", key->path, LIST_MAX);
        return GW_EINVAL;
    }
    struct slice *items = arena_alloc(conf->arena, (count + 1) * sizeof(*items));
    struct slice rest = arena_copy(conf->arena, text);
    if (!items || !rest.ptr)
        return GW_ENOMEM;
    count = 0;
    for (bool is_last = false; !is_last;) {
        const char *comma = rest.len ? memchr(rest.ptr, ',', rest.len) : NULL;
        is_last = comma == NULL;
        struct slice item = is_last ? rest : slice_of(rest.ptr, (size_t)(comma - rest.ptr));
        rest = slice_from(rest, item.len + 1);
        item = slice_trim(item);
        if (item.len)
            items[count++] = item;
    }
    *(struct conf_list *)field_of(conf, key) = (struct conf_list){items, count};
    return 0;
}

static int set_secret(struct conf *conf, const struct conf_key *key, struct slice text)
{
    struct secret *secret = NULL;
    if (text.len) {
        secret = secret_new(text);
        if (!secret)
            return GW_ENOMEM;
        // Too short to be hidden means too short to be used: conf_check says so.
        if (log_hide_secret(text) == GW_ENOMEM) {
            secret_unref(secret);
            return GW_ENOMEM;
        }
    }
    drop_secret(field_of(conf, key));
    *(struct secret **)field_of(conf, key) = secret;
    return 0;
}

int conf_set(struct conf *conf, const struct conf_key *key, struct slice text, char *why,
             size_t why_size)
{
    int err = GW_EINVAL;
    if (why_size)
        why[0] = '\0';
    if (text.len > TEXT_MAX) {
        snprintf(why, why_size, "%s is longer than %d bytes", key->path, TEXT_MAX);
        return GW_ETOOBIG;
    }
    switch (key->type) {
    case CONF_TYPE_TEXT: err = set_text(conf, key, text, why, why_size); break;
    case CONF_TYPE_INT: err = set_whole(conf, key, text, why, why_size); break;
    case CONF_TYPE_MS: err = set_seconds(conf, key, text, why, why_size); break;
    case CONF_TYPE_BOOL: err = set_bool(conf, key, text, why, why_size); break;
    case CONF_TYPE_LIST: err = set_list(conf, key, text, why, why_size); break;
    case CONF_TYPE_SECRET: err = set_secret(conf, key, text); break;
    case CONF_TYPE_MONEY: {
        int64_t nano = 0;
        err = money_parse(text, &nano);
        if (err || nano <= 0) {
            snprintf(why, why_size, "%s must be a decimal above 0 with at most 9 fraction digits",
                     key->path);
            err = GW_EINVAL;
        } else {
            *(int64_t *)field_of(conf, key) = nano;
        }
        break;
    }
    }
    if (err == GW_ENOMEM)
        snprintf(why, why_size, "out of memory");
    else if (err == 0 && why_size)
        why[0] = '\0';
    return err;
}

int conf_render(const struct conf *conf, const struct conf_key *key, struct arena *arena,
                struct slice *out)
{
    char number[32];
    struct buf text = BUF_INIT(0);
    const void *field = field_of(conf, key);
    int err = 0;
    switch (key->type) {
    case CONF_TYPE_TEXT: err = json_quote(&text, *(const struct slice *)field); break;
    case CONF_TYPE_INT: err = buf_append_i64(&text, *(const int64_t *)field); break;
    case CONF_TYPE_MS:
        format_seconds(*(const int64_t *)field, number);
        err = buf_append_str(&text, number);
        break;
    case CONF_TYPE_BOOL:
        err = buf_append_str(&text, *(const bool *)field ? "true" : "false");
        break;
    case CONF_TYPE_MONEY:
        money_format(*(const int64_t *)field, number, sizeof(number));
        err = buf_printf(&text, "\"%s\"", number);
        break;
    case CONF_TYPE_LIST: {
        const struct conf_list *list = field;
        err = buf_append_char(&text, '{');
        for (size_t i = 0; i < list->count && err == 0; i++) {
            err = buf_append_str(&text, i ? ", " : " ");
            if (err == 0)
                err = json_quote(&text, list->items[i]);
        }
        if (err == 0)
            err = buf_append_str(&text, list->count ? " }" : "}");
        break;
    }
    case CONF_TYPE_SECRET:
        err = buf_append_str(&text, *(struct secret *const *)field ? "\"***\"" : "nil");
        break;
    }
    if (err == 0) {
        *out = arena_copy(arena, buf_slice(&text));
        err = out->ptr ? 0 : GW_ENOMEM;
    }
    buf_free(&text);
    return err;
}

int conf_path(const struct conf *conf, struct slice path, struct slice *out)
{
    bool is_plain = slice_starts(path, "/") || conf->dir.len == 0 || slice_is(conf->dir, ".");
    char *text = NULL;
    if (is_plain) {
        text = arena_copyz(conf->arena, path);
    } else {
        struct slice joined =
            arena_printf(conf->arena, "%.*s/%.*s%c", SLICE_FMT(conf->dir), SLICE_FMT(path), '\0');
        text = (char *)joined.ptr;
        path.len = joined.len - 1;
    }
    if (!text)
        return GW_ENOMEM;
    *out = slice_of(text, path.len);
    return 0;
}

// Templates of quirks: {model} and {config.name}.
#include "script/quirk.h"
#include "base/buf.h"
#include "codec/json.h"
#include <ctype.h>

#define MAX_EXPANDED 8192

// As one path segment or query value: everything but RFC 3986's unreserved characters is encoded.
static int append_encoded(struct buf *out, struct slice text)
{
    int err = 0;
    // A segment of dots would be resolved away, encoded or not.
    if (slice_is(text, ".") || slice_is(text, ".."))
        return GW_EINVAL;
    for (size_t i = 0; i < text.len && !err; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (isalnum(c) || c == '-' || c == '.' || c == '_' || c == '~')
            err = buf_append_char(out, (char)c);
        else
            err = buf_printf(out, "%%%02X", c);
    }
    return err;
}

static int append_config(struct buf *out, struct slice name, yyjson_val *config)
{
    yyjson_val *val = yyjson_obj_getn(config, name.ptr, name.len);
    struct slice text = json_string_slice(val);
    if (!text.ptr)
        text = json_number_text(val);
    return text.len ? append_encoded(out, text) : GW_EINVAL;
}

static int expand(struct slice template, struct slice model, yyjson_val *config, struct buf *out)
{
    int err = 0;
    while (template.len && !err) {
        const char *open = memchr(template.ptr, '{', template.len);
        size_t len = open ? (size_t)(open - template.ptr) : template.len;
        err = buf_append(out, slice_of(template.ptr, len));
        template = slice_from(template, len);
        if (template.len == 0 || err)
            break;
        const char *close = memchr(template.ptr, '}', template.len);
        if (!close)
            return GW_EINVAL;
        struct slice name = slice_of(template.ptr + 1, (size_t)(close - template.ptr) - 1);
        template = slice_from(template, name.len + 2);
        if (slice_is(name, "model"))
            err = append_encoded(out, model);
        else if (slice_starts(name, "config."))
            err = append_config(out, slice_from(name, 7), config);
        else
            err = GW_EINVAL;
    }
    return err;
}

int quirk_expand(struct slice template, struct slice model, struct slice config_json,
                 struct arena *arena, struct slice *out)
{
    struct json_doc *doc = NULL;
    const char *why = NULL;
    size_t at = 0;
    int err = 0;
    if (config_json.len && slice_find(template, SLICE_LIT("{config.")) >= 0)
        err = json_parse(config_json, (size_t)1 << 20, &doc, &why, &at);
    struct buf text = BUF_INIT(MAX_EXPANDED);
    if (!err)
        err = expand(template, model, doc ? json_root(doc) : NULL, &text);
    if (!err) {
        *out = arena_copy(arena, buf_slice(&text));
        err = out->ptr ? 0 : GW_ENOMEM;
    }
    buf_free(&text);
    json_doc_free(doc);
    return err;
}

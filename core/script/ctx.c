#include "script/ctx.h"
#include "script/runtime.h"
#include "state/directory.h"
#include <string.h>

bool ctx_has_flag(const struct ctx *ctx, const char *flag)
{
    for (size_t i = 0; i < ctx->flag_count; i++)
        if (slice_is(ctx->flags[i], flag))
            return true;
    return false;
}

void ctx_flag(struct ctx *ctx, const char *flag)
{
    if (ctx->flag_count < CTX_MAX_FLAGS && !ctx_has_flag(ctx, flag))
        ctx->flags[ctx->flag_count++] = slice_str(flag);
}

// "Bearer x" → "x"; another scheme gives nothing.
static struct slice bearer(struct slice value)
{
    static const char scheme[] = "bearer";
    if (value.len <= sizeof scheme || strncasecmp(value.ptr, scheme, sizeof scheme - 1) != 0 ||
        value.ptr[sizeof scheme - 1] != ' ')
        return SLICE_NONE;
    return slice_trim(slice_from(value, sizeof scheme));
}

int ctx_credential(const struct http1_request *request, struct slice *out)
{
    *out = SLICE_NONE;
    for (size_t i = 0; i < request->header_count; i++) {
        const struct http1_header *header = &request->headers[i];
        struct slice found;
        if (slice_is_nocase(header->name, "authorization"))
            found = bearer(slice_trim(header->value));
        else if (slice_is_nocase(header->name, "x-api-key") ||
                 slice_is_nocase(header->name, "api-key"))
            found = slice_trim(header->value);
        else
            continue;
        if (found.len == 0)
            continue;
        if (out->ptr && !secret_equal(*out, found))
            return GW_EINVAL;
        *out = found;
    }
    return out->ptr ? 0 : GW_ENOTFOUND;
}

static int copy(struct arena *arena, struct slice from, struct slice *to)
{
    *to = arena_copy(arena, from);
    return to->ptr || from.len == 0 ? 0 : GW_ENOMEM;
}

int ctx_copy_key(struct arena *arena, const struct key_entry *entry, struct ctx_key *out)
{
    memset(out, 0, sizeof *out);
    out->id = entry->id;
    key_entry_uid(entry, out->uid);
    out->user_id = entry->user_id;
    out->has_upstream_list = entry->has_upstream_list;
    if (copy(arena, key_entry_prefix(entry), &out->prefix) != 0 ||
        copy(arena, key_entry_name(entry), &out->name) != 0)
        return GW_ENOMEM;
    if (entry->upstream_count > 0) {
        int64_t *ids = arena_alloc(arena, entry->upstream_count * sizeof *ids);
        if (!ids)
            return GW_ENOMEM;
        memcpy(ids, key_entry_upstream_ids(entry), entry->upstream_count * sizeof *ids);
        out->upstream_ids = ids;
        out->upstream_count = entry->upstream_count;
    }
    if (entry->allowed_model_count > 0) {
        struct slice *models = arena_alloc(arena, entry->allowed_model_count * sizeof *models);
        if (!models)
            return GW_ENOMEM;
        for (size_t i = 0; i < entry->allowed_model_count; i++)
            if (copy(arena, key_entry_model(entry, i), &models[i]) != 0)
                return GW_ENOMEM;
        out->allowed_models = models;
        out->allowed_model_count = entry->allowed_model_count;
    }
    return 0;
}

int ctx_copy_user(struct arena *arena, const struct user_entry *entry, struct ctx_user *out)
{
    memset(out, 0, sizeof *out);
    out->id = entry->id;
    out->discount_ppm = entry->discount_ppm;
    if (copy(arena, entry->name, &out->name) != 0 || copy(arena, entry->group, &out->group) != 0)
        return GW_ENOMEM;
    return 0;
}

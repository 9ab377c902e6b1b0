#include "wire/oracle.h"
#include <stdlib.h>
#include <yyjson.h>

struct field {
    bool has;
    uint64_t value;
};

struct walk {
    struct oracle *oracle;
    enum dialect_id id;
    struct field prompt, completion, total, cached, cached_flat, written, m5, h1, reasoning,
        reasoning_flat, audio_in, image_in, audio_out, calls;
};

static void set(struct walk *walk, struct field *field, yyjson_val *obj, const char *key)
{
    yyjson_val *val = yyjson_obj_get(obj, key);
    if (val == NULL || yyjson_is_null(val))
        return;
    if (!yyjson_is_uint(val) || yyjson_get_uint(val) > UINT64_C(1) << 40) {
        walk->oracle->is_odd = true;
        return;
    }
    *field = (struct field){true, yyjson_get_uint(val)};
}

static void take_usage(struct walk *walk, yyjson_val *u)
{
    if (!yyjson_is_obj(u))
        return;
    yyjson_val *in = yyjson_obj_get(u, walk->id == DIALECT_RESPONSES ? "input_tokens_details"
                                                                     : "prompt_tokens_details");
    yyjson_val *out = yyjson_obj_get(
        u, walk->id == DIALECT_RESPONSES ? "output_tokens_details" : "completion_tokens_details");
    if (walk->id == DIALECT_ANTHROPIC) {
        set(walk, &walk->prompt, u, "input_tokens");
        set(walk, &walk->completion, u, "output_tokens");
        set(walk, &walk->cached, u, "cache_read_input_tokens");
        set(walk, &walk->written, u, "cache_creation_input_tokens");
        set(walk, &walk->m5, yyjson_obj_get(u, "cache_creation"), "ephemeral_5m_input_tokens");
        set(walk, &walk->h1, yyjson_obj_get(u, "cache_creation"), "ephemeral_1h_input_tokens");
        set(walk, &walk->reasoning, yyjson_obj_get(u, "output_tokens_details"), "thinking_tokens");
        set(walk, &walk->calls, yyjson_obj_get(u, "server_tool_use"), "web_search_requests");
        return;
    }
    bool is_chat = walk->id == DIALECT_OPENAI;
    set(walk, &walk->prompt, u, is_chat ? "prompt_tokens" : "input_tokens");
    set(walk, &walk->completion, u, is_chat ? "completion_tokens" : "output_tokens");
    set(walk, &walk->total, u, "total_tokens");
    set(walk, &walk->cached_flat, u, "cached_tokens");
    set(walk, &walk->cached_flat, u, "num_cached_tokens");
    set(walk, &walk->cached_flat, u, "prompt_cache_hit_tokens");
    set(walk, &walk->cached, in, "cached_tokens");
    set(walk, &walk->written, u, "cache_creation_input_tokens");
    set(walk, &walk->written, in, "cache_write_tokens");
    set(walk, &walk->reasoning, out, "reasoning_tokens");
    set(walk, &walk->reasoning_flat, u, "reasoning_tokens");
    set(walk, &walk->audio_in, in, "audio_tokens");
    set(walk, &walk->image_in, in, "image_tokens");
    set(walk, &walk->audio_out, out, "audio_tokens");
    set(walk, &walk->calls, u, "num_server_side_tools_used");
    set(walk, &walk->calls, yyjson_obj_get(u, "server_tool_use"), "web_search_requests");
    set(walk, &walk->calls, yyjson_obj_get(u, "server_tool_use_details"), "web_search_requests");
    // Rules of few providers, judged by their recordings' expect.json.
    if (yyjson_is_num(yyjson_obj_get(u, "prompt_audio_seconds")) || !walk->prompt.has)
        walk->oracle->is_odd = true;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void settle(struct walk *walk)
{
    struct oracle *oracle = walk->oracle;
    struct usage *usage = &oracle->usage;
    uint64_t p = walk->prompt.value, c = walk->completion.value, t = walk->total.value;
    oracle->has_usage = walk->prompt.has || walk->completion.has || walk->total.has;
    oracle->has_total = walk->total.has;
    oracle->total = t;
    usage->server_calls = walk->calls.value;
    if (walk->id == DIALECT_ANTHROPIC) {
        usage->input = p;
        usage->cache_read = walk->cached.value;
        usage->cache_write_1h = min_u64(walk->h1.value, walk->written.value);
        usage->cache_write_5m = walk->written.value - usage->cache_write_1h;
        usage->reasoning = min_u64(walk->reasoning.value, c);
        usage->output = c - usage->reasoning;
        return;
    }
    uint64_t cached = walk->cached.value != 0 ? walk->cached.value : walk->cached_flat.value;
    uint64_t r = walk->reasoning.value != 0 ? walk->reasoning.value : walk->reasoning_flat.value;
    uint64_t all = walk->total.has && t > p + c ? t - p : c;
    if (t == p + c + r)
        usage->reasoning = r;
    else if (t > p + c)
        usage->reasoning = r + (t - p - c);
    else
        usage->reasoning = min_u64(r, c);
    usage->audio_out = min_u64(walk->audio_out.value, all - usage->reasoning);
    usage->output = all - usage->reasoning - usage->audio_out;
    usage->cache_read = min_u64(cached, p);
    p -= usage->cache_read;
    usage->cache_write_5m = min_u64(walk->written.value, p);
    p -= usage->cache_write_5m;
    usage->audio_in = min_u64(walk->audio_in.value, p);
    p -= usage->audio_in;
    usage->image_in = min_u64(walk->image_in.value, p);
    usage->input = p - usage->image_in;
}

static bool filled(yyjson_val *val)
{
    return yyjson_get_len(val) > 0 && yyjson_is_str(val);
}

static void copy(char *out, size_t size, yyjson_val *val)
{
    if (!filled(val))
        return;
    size_t len = yyjson_get_len(val);
    if (len >= size)
        len = size - 1;
    memcpy(out, yyjson_get_str(val), len);
    out[len] = '\0';
}

#define HIDDEN (-1) // counted, but not shown as an event's text

static void add_text(struct oracle *oracle, yyjson_val *val, int block)
{
    if (!filled(val))
        return;
    size_t len = yyjson_get_len(val);
    oracle->text_bytes += len;
    if (block == HIDDEN || oracle->has_text)
        return;
    oracle->has_text = true;
    char **text = &oracle->texts[block];
    *text = realloc(*text, oracle->text_lens[block] + len + 1);
    memcpy(*text + oracle->text_lens[block], yyjson_get_str(val), len);
    oracle->text_lens[block] += len;
}

static bool read_choice(struct walk *walk, yyjson_val *choice, const char *member)
{
    struct oracle *oracle = walk->oracle;
    yyjson_val *delta = yyjson_obj_get(choice, member), *list, *item;
    size_t i, count;
    bool is_semantic = false;
    yyjson_val *content = yyjson_obj_get(delta, "content");
    if (filled(content)) {
        add_text(oracle, content, EVENT_BLOCK_TEXT);
        is_semantic = true;
    } else if (yyjson_arr_size(content) > 0) {
        yyjson_arr_foreach(content, i, count, item)
        {
            yyjson_val *inner;
            size_t k, inner_count;
            add_text(oracle, yyjson_obj_get(item, "text"), HIDDEN);
            list = yyjson_obj_get(item, "thinking");
            yyjson_arr_foreach(list, k, inner_count, inner)
                add_text(oracle, yyjson_obj_get(inner, "text"), HIDDEN);
        }
        is_semantic = true;
    } else if (!yyjson_is_obj(delta) && filled(yyjson_obj_get(choice, "text"))) {
        add_text(oracle, yyjson_obj_get(choice, "text"), EVENT_BLOCK_TEXT);
        is_semantic = true;
    }
    if (filled(yyjson_obj_get(delta, "reasoning_content"))) {
        add_text(oracle, yyjson_obj_get(delta, "reasoning_content"), EVENT_BLOCK_THINKING);
        is_semantic = true;
    } else if (filled(yyjson_obj_get(delta, "reasoning"))) {
        add_text(oracle, yyjson_obj_get(delta, "reasoning"), EVENT_BLOCK_THINKING);
        is_semantic = true;
    } else if (yyjson_arr_size(yyjson_obj_get(delta, "reasoning_details")) > 0) {
        list = yyjson_obj_get(delta, "reasoning_details");
        yyjson_arr_foreach(list, i, count, item)
        {
            add_text(oracle, yyjson_obj_get(item, "text"), HIDDEN);
            add_text(oracle, yyjson_obj_get(item, "summary"), HIDDEN);
        }
        is_semantic = true;
    }
    list = yyjson_obj_get(delta, "tool_calls");
    yyjson_arr_foreach(list, i, count, item)
    {
        add_text(oracle, yyjson_obj_get(yyjson_obj_get(item, "function"), "arguments"),
                 i == 0 ? EVENT_BLOCK_TOOL : HIDDEN);
        is_semantic = true;
    }
    if (yyjson_is_obj(yyjson_obj_get(delta, "function_call"))) {
        add_text(oracle, yyjson_obj_get(yyjson_obj_get(delta, "function_call"), "arguments"),
                 EVENT_BLOCK_TOOL);
        is_semantic = true;
    }
    if (filled(yyjson_obj_get(delta, "refusal"))) {
        add_text(oracle, yyjson_obj_get(delta, "refusal"), EVENT_BLOCK_REFUSAL);
        is_semantic = true;
    }
    if (yyjson_is_obj(yyjson_obj_get(delta, "audio")) ||
        yyjson_arr_size(yyjson_obj_get(delta, "images")) > 0 ||
        yyjson_arr_size(yyjson_obj_get(delta, "executed_tools")) > 0 ||
        yyjson_arr_size(yyjson_obj_get(delta, "annotations")) > 0)
        is_semantic = true;
    if (filled(yyjson_obj_get(choice, "finish_reason"))) {
        copy(oracle->finish, sizeof(oracle->finish), yyjson_obj_get(choice, "finish_reason"));
        is_semantic = true;
    }
    return is_semantic;
}

static bool is_error(yyjson_val *val)
{
    return yyjson_obj_size(val) > 0 || filled(val);
}

static bool read_chat(struct walk *walk, yyjson_val *root, const char *member)
{
    yyjson_val *choices = yyjson_obj_get(root, "choices"), *choice;
    bool is_semantic = false;
    size_t i, count;
    take_usage(walk, yyjson_obj_get(yyjson_obj_get(root, "x_groq"), "usage"));
    take_usage(walk, yyjson_obj_get(root, "usage"));
    if (walk->oracle->model[0] == '\0')
        copy(walk->oracle->model, sizeof(walk->oracle->model), yyjson_obj_get(root, "model"));
    yyjson_arr_foreach(choices, i, count, choice) is_semantic |= read_choice(walk, choice, member);
    return is_semantic;
}

static enum dialect_class chat_event(struct walk *walk, const char *name, yyjson_val *root)
{
    bool is_semantic = read_chat(walk, root, "delta");
    yyjson_val *choices = yyjson_obj_get(root, "choices");
    if (strcmp(name, "error") == 0 || is_error(yyjson_obj_get(root, "error")) ||
        filled(yyjson_obj_get(yyjson_obj_get(root, "x_groq"), "error")) ||
        yyjson_equals_str(yyjson_obj_get(root, "object"), "error"))
        return DIALECT_EVENT_ERROR;
    if (is_semantic)
        return DIALECT_EVENT_CONTENT;
    if (yyjson_is_arr(choices) && yyjson_arr_size(choices) == 0 &&
        yyjson_is_obj(yyjson_obj_get(root, "usage")))
        return DIALECT_EVENT_USAGE;
    return DIALECT_EVENT_NOISE;
}

static enum dialect_class claude_event(struct walk *walk, const char *type, yyjson_val *root)
{
    struct oracle *oracle = walk->oracle;
    yyjson_val *message = yyjson_obj_get(root, "message"), *delta = yyjson_obj_get(root, "delta");
    yyjson_val *block = yyjson_obj_get(root, "content_block");
    if (strcmp(type, "message_start") == 0) {
        copy(oracle->model, sizeof(oracle->model), yyjson_obj_get(message, "model"));
        take_usage(walk, yyjson_obj_get(message, "usage"));
        copy(oracle->finish, sizeof(oracle->finish), yyjson_obj_get(message, "stop_reason"));
        return DIALECT_EVENT_PREAMBLE;
    }
    if (strcmp(type, "message_delta") == 0) {
        take_usage(walk, yyjson_obj_get(root, "usage"));
        copy(oracle->finish, sizeof(oracle->finish), yyjson_obj_get(delta, "stop_reason"));
        return DIALECT_EVENT_CONTENT;
    }
    if (strcmp(type, "content_block_delta") == 0) {
        add_text(oracle, yyjson_obj_get(delta, "text"), EVENT_BLOCK_TEXT);
        add_text(oracle, yyjson_obj_get(delta, "thinking"), EVENT_BLOCK_THINKING);
        add_text(oracle, yyjson_obj_get(delta, "partial_json"), EVENT_BLOCK_TOOL);
        return DIALECT_EVENT_CONTENT;
    }
    if (strncmp(type, "content_block_st", 16) == 0) {
        add_text(oracle, yyjson_obj_get(block, "text"), EVENT_BLOCK_TEXT);
        add_text(oracle, yyjson_obj_get(block, "thinking"), EVENT_BLOCK_THINKING);
        return DIALECT_EVENT_CONTENT;
    }
    return strcmp(type, "message_stop") == 0 ? DIALECT_EVENT_END
           : strcmp(type, "error") == 0      ? DIALECT_EVENT_ERROR
                                             : DIALECT_EVENT_NOISE;
}

static enum dialect_class responses_event(struct walk *walk, const char *type, yyjson_val *root)
{
    struct oracle *oracle = walk->oracle;
    yyjson_val *response = yyjson_obj_get(root, "response");
    if (strcmp(type, "error") == 0)
        return DIALECT_EVENT_ERROR;
    if (strncmp(type, "response.", 9) != 0)
        return DIALECT_EVENT_NOISE;
    if (yyjson_is_obj(response)) {
        take_usage(walk, yyjson_obj_get(response, "usage"));
        copy(oracle->model, sizeof(oracle->model), yyjson_obj_get(response, "model"));
    }
    if (strcmp(type, "response.failed") == 0)
        return DIALECT_EVENT_ERROR;
    if (strcmp(type, "response.completed") == 0 || strcmp(type, "response.incomplete") == 0) {
        copy(oracle->finish, sizeof(oracle->finish), yyjson_obj_get(response, "status"));
        copy(oracle->finish, sizeof(oracle->finish),
             yyjson_obj_get(yyjson_obj_get(response, "incomplete_details"), "reason"));
        return DIALECT_EVENT_END;
    }
    if (strcmp(type, "response.created") == 0 || strcmp(type, "response.in_progress") == 0 ||
        strcmp(type, "response.queued") == 0)
        return DIALECT_EVENT_PREAMBLE;
    size_t len = strlen(type);
    if (len > 6 && strcmp(type + len - 6, ".delta") == 0)
        add_text(oracle, yyjson_obj_get(root, "delta"),
                 strcmp(type, "response.output_text.delta") == 0 ? EVENT_BLOCK_TEXT
                 : strstr(type, "reasoning") != NULL             ? EVENT_BLOCK_THINKING
                 : strcmp(type, "response.refusal.delta") == 0   ? EVENT_BLOCK_REFUSAL
                                                                 : EVENT_BLOCK_TOOL);
    return DIALECT_EVENT_CONTENT;
}

static void one_event(struct walk *walk, const char *name, const char *data, size_t len)
{
    struct oracle *oracle = walk->oracle;
    enum dialect_class class = DIALECT_EVENT_NOISE;
    oracle->has_text = false;
    bool is_over = oracle->has_end;
    yyjson_doc *doc = yyjson_read(data, len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    if (is_over) {
        class = DIALECT_EVENT_NOISE;
    } else if (walk->id == DIALECT_OPENAI && strncmp(data + strspn(data, " "), "[DONE]", 6) == 0) {
        class = DIALECT_EVENT_END;
    } else if (yyjson_is_obj(root)) {
        const char *type = yyjson_get_str(yyjson_obj_get(root, "type"));
        if (walk->id == DIALECT_OPENAI)
            class = chat_event(walk, name, root);
        else if (walk->id == DIALECT_ANTHROPIC)
            class = claude_event(walk, type != NULL ? type : name, root);
        else
            class = responses_event(walk, type != NULL ? type : name, root);
    } else if (strcmp(name, "error") == 0) {
        class = DIALECT_EVENT_ERROR;
    } else if (len > 0 && data[0] == '{') {
        oracle->is_odd = true; // lone surrogates and the like: the tree's reader is stricter
    }
    if (class == DIALECT_EVENT_END)
        oracle->has_end = true;
    if (class == DIALECT_EVENT_ERROR)
        oracle->has_error = true;
    if (walk->id == DIALECT_RESPONSES && root != NULL && !is_over && class == DIALECT_EVENT_ERROR &&
        yyjson_equals_str(yyjson_obj_get(root, "type"), "response.failed"))
        oracle->has_end = true;
    if (oracle->event_count < sizeof(oracle->classes) / sizeof(oracle->classes[0]))
        oracle->classes[oracle->event_count++] = class;
    yyjson_doc_free(doc);
}

void oracle_stream(struct oracle *oracle, enum dialect_id id, const char *bytes, size_t len)
{
    struct walk walk = {.oracle = oracle, .id = id};
    char *data = malloc(len + 2), name[64] = "";
    size_t data_len = 0, at = 0;
    bool has_data = false;
    if (len >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0)
        at = 3;
    while (at < len) {
        size_t start = at;
        while (at < len && bytes[at] != '\n' && bytes[at] != '\r')
            at++;
        size_t line = at - start;
        const char *text = bytes + start;
        if (at < len) {
            if (bytes[at] == '\r' && at + 1 < len && bytes[at + 1] == '\n')
                at++;
            at++;
        }
        if (line == 0) {
            data[data_len] = '\0';
            if (has_data)
                one_event(&walk, name, data, data_len);
            has_data = false;
            data_len = 0;
            name[0] = '\0';
        } else if (line >= 5 && memcmp(text, "data:", 5) == 0) {
            size_t skip = line > 5 && text[5] == ' ' ? 6 : 5;
            if (has_data)
                data[data_len++] = '\n';
            has_data = true;
            memcpy(data + data_len, text + skip, line - skip);
            data_len += line - skip;
        } else if (line >= 6 && memcmp(text, "event:", 6) == 0) {
            size_t skip = line > 6 && text[6] == ' ' ? 7 : 6;
            if (line - skip < sizeof(name)) {
                memcpy(name, text + skip, line - skip);
                name[line - skip] = '\0';
            }
        }
    }
    data[data_len] = '\0';
    if (has_data)
        one_event(&walk, name, data, data_len);
    free(data);
    settle(&walk);
}

void oracle_body(struct oracle *oracle, enum dialect_id id, const char *bytes, size_t len)
{
    struct walk walk = {.oracle = oracle, .id = id};
    yyjson_doc *doc = yyjson_read(bytes, len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc), *error = yyjson_obj_get(root, "error");
    if (root == NULL)
        oracle->is_odd = true;
    if (id == DIALECT_OPENAI) {
        if (yyjson_arr_size(yyjson_obj_get(root, "choices")) == 0)
            oracle->has_error = is_error(error) ||
                                is_error(yyjson_obj_get(yyjson_arr_get_first(root), "error")) ||
                                yyjson_equals_str(yyjson_obj_get(root, "object"), "error");
        read_chat(&walk, root, "message");
    } else {
        take_usage(&walk, yyjson_obj_get(root, "usage"));
        copy(oracle->model, sizeof(oracle->model), yyjson_obj_get(root, "model"));
        if (id == DIALECT_ANTHROPIC) {
            copy(oracle->finish, sizeof(oracle->finish), yyjson_obj_get(root, "stop_reason"));
            oracle->has_error = yyjson_equals_str(yyjson_obj_get(root, "type"), "error");
        } else {
            copy(oracle->finish, sizeof(oracle->finish), yyjson_obj_get(root, "status"));
            copy(oracle->finish, sizeof(oracle->finish),
                 yyjson_obj_get(yyjson_obj_get(root, "incomplete_details"), "reason"));
            oracle->has_error = is_error(error);
        }
    }
    yyjson_doc_free(doc);
    settle(&walk);
}

void oracle_free(struct oracle *oracle)
{
    for (int i = 0; i < 4; i++)
        free(oracle->texts[i]);
}

// string.find, match, gmatch, gsub over pattern.c and a bounded rep: the functions of LuaJIT's own
// library run unbounded inside one C call.
#include "script/pattern.h"
#include "script/sandbox.h"
#include "script/state.h"
#include <string.h>

#define MAX_PATTERN 4096
#define MAX_STEPS 2000000u       // of one call
#define STEPS_PER_INSTRUCTION 2  // what a step costs of the instruction budget
#define MATCH_COST 5             // instructions in the time of one replacement
#define BYTES_PER_INSTRUCTION 32 // copied in the time of one
#define MAX_RESULT ((size_t)32 << 20)

static void check_error(lua_State *L, const struct pattern *state)
{
    if (state->error)
        luaL_error(L, "%s", state->error);
}

static void push_capture(lua_State *L, const struct pattern *state, int index, const char *start,
                         const char *end)
{
    if (index >= state->level) {
        if (index != 0)
            luaL_error(L, "invalid capture index");
        lua_pushlstring(L, start, (size_t)(end - start));
        return;
    }
    ptrdiff_t len = state->captures[index].len;
    if (len == PATTERN_POSITION)
        lua_pushinteger(L, state->captures[index].start - state->subject + 1);
    else if (len < 0)
        luaL_error(L, "unfinished capture");
    else
        lua_pushlstring(L, state->captures[index].start, (size_t)len);
}

// All captures, or the whole match when there are none and it is asked for.
static int push_captures(lua_State *L, const struct pattern *state, const char *start,
                         const char *end)
{
    int count = state->level == 0 && start ? 1 : state->level;
    luaL_checkstack(L, count, "too many captures");
    for (int i = 0; i < count; i++)
        push_capture(L, state, i, start, end);
    return count;
}

static struct slice check_pattern(lua_State *L, int index)
{
    struct slice pattern = lua_env_check_slice(L, index);
    if (pattern.len > MAX_PATTERN)
        luaL_error(L, "pattern longer than %d bytes", MAX_PATTERN);
    return pattern;
}

static void charge_steps(lua_State *L, uint64_t before, uint64_t after)
{
    lua_env_charge(L, (before - after) / STEPS_PER_INSTRUCTION);
}

static size_t start_position(lua_State *L, int index, size_t len)
{
    lua_Integer init = luaL_optinteger(L, index, 1);
    if (init < 0)
        init += (lua_Integer)len + 1;
    if (init < 1)
        init = 1;
    return (size_t)init - 1;
}

static bool is_plain(struct slice pattern)
{
    for (size_t i = 0; i < pattern.len; i++)
        if (strchr("^$*+?.([%-", pattern.ptr[i]) && pattern.ptr[i] != '\0')
            return false;
    return true;
}

static int find_or_match(lua_State *L, bool is_find)
{
    struct slice subject = lua_env_check_slice(L, 1), pattern = check_pattern(L, 2);
    size_t at = start_position(L, 3, subject.len);
    if (at > subject.len) {
        lua_pushnil(L);
        return 1;
    }
    if (is_find && (lua_toboolean(L, 4) || is_plain(pattern))) {
        lua_env_charge(L, (subject.len - at) / 32);
        long found = slice_find(slice_from(subject, at), pattern);
        if (found < 0) {
            lua_pushnil(L);
            return 1;
        }
        lua_pushinteger(L, (lua_Integer)(at + (size_t)found + 1));
        lua_pushinteger(L, (lua_Integer)(at + (size_t)found + pattern.len));
        return 2;
    }
    struct pattern state;
    pattern_init(&state, subject, pattern, MAX_STEPS);
    bool is_anchored = pattern.len > 0 && pattern.ptr[0] == '^';
    const char *text = pattern.ptr + is_anchored;
    for (const char *s = subject.ptr + at;; s++) {
        state.level = 0;
        const char *end = pattern_match(&state, s, text);
        if (end || state.error || is_anchored || s >= state.subject_end) {
            charge_steps(L, MAX_STEPS, state.steps);
            check_error(L, &state);
            if (!end)
                break;
            if (!is_find)
                return push_captures(L, &state, s, end);
            lua_pushinteger(L, s - subject.ptr + 1);
            lua_pushinteger(L, end - subject.ptr);
            return push_captures(L, &state, NULL, NULL) + 2;
        }
    }
    lua_pushnil(L);
    return 1;
}

static int string_find(lua_State *L)
{
    return find_or_match(L, true);
}

static int string_match(lua_State *L)
{
    return find_or_match(L, false);
}

// upvalues: subject, pattern, next position
static int gmatch_next(lua_State *L)
{
    struct slice subject = lua_env_check_slice(L, lua_upvalueindex(1));
    struct slice pattern = lua_env_check_slice(L, lua_upvalueindex(2));
    struct pattern state;
    pattern_init(&state, subject, pattern, MAX_STEPS);
    const char *s = subject.ptr + lua_tointeger(L, lua_upvalueindex(3));
    for (; s <= state.subject_end; s++) {
        state.level = 0;
        const char *end = pattern_match(&state, s, pattern.ptr);
        if (!end && !state.error)
            continue;
        charge_steps(L, MAX_STEPS, state.steps);
        check_error(L, &state);
        lua_pushinteger(L, end - subject.ptr + (end == s));
        lua_replace(L, lua_upvalueindex(3));
        return push_captures(L, &state, s, end);
    }
    charge_steps(L, MAX_STEPS, state.steps);
    return 0;
}

static int string_gmatch(lua_State *L)
{
    lua_env_check_slice(L, 1);
    check_pattern(L, 2);
    lua_settop(L, 2);
    lua_pushinteger(L, 0);
    lua_pushcclosure(L, gmatch_next, 3);
    return 1;
}

static void add_bytes(lua_State *L, struct buf *out, struct slice bytes)
{
    if (buf_append(out, bytes) != 0)
        luaL_error(L, "result of gsub is too long");
}

// The replacement text with %0..%9 filled in.
static void add_text(lua_State *L, struct buf *out, const struct pattern *state, const char *start,
                     const char *end)
{
    struct slice text = lua_env_check_slice(L, 3);
    lua_env_charge(L, text.len / BYTES_PER_INSTRUCTION);
    for (size_t i = 0; i < text.len; i++) {
        const char *mark = memchr(&text.ptr[i], '%', text.len - i);
        size_t plain = (mark ? (size_t)(mark - text.ptr) : text.len) - i;
        if (plain > 0)
            add_bytes(L, out, slice_of(&text.ptr[i], plain));
        i += plain;
        if (!mark)
            break;
        char byte;
        i++;
        if (i >= text.len)
            luaL_error(L, "invalid use of '%%' in replacement string");
        byte = text.ptr[i];
        if (byte == '0') {
            add_bytes(L, out, slice_of(start, (size_t)(end - start)));
        } else if (byte >= '1' && byte <= '9') {
            push_capture(L, state, byte - '1', start, end);
            size_t len;
            const char *capture = lua_tolstring(L, -1, &len);
            add_bytes(L, out, slice_of(capture, len));
            lua_pop(L, 1);
        } else {
            add_bytes(L, out, slice_of(&text.ptr[i], 1));
        }
    }
}

static void add_value(lua_State *L, struct buf *out, const struct pattern *state, const char *start,
                      const char *end, int kind)
{
    if (kind == LUA_TFUNCTION) {
        lua_pushvalue(L, 3);
        int count = push_captures(L, state, start, end);
        lua_call(L, count, 1);
    } else if (kind == LUA_TTABLE) {
        push_capture(L, state, 0, start, end);
        lua_gettable(L, 3);
    } else {
        add_text(L, out, state, start, end);
        return;
    }
    if (!lua_toboolean(L, -1)) {
        add_bytes(L, out, slice_of(start, (size_t)(end - start)));
    } else {
        size_t len = 0;
        const char *text = lua_isstring(L, -1) ? lua_tolstring(L, -1, &len) : NULL;
        if (!text)
            luaL_error(L, "invalid replacement value (a %s)", luaL_typename(L, -1));
        add_bytes(L, out, slice_of(text, len));
    }
    lua_pop(L, 1);
}

static int string_gsub(lua_State *L)
{
    struct slice subject = lua_env_check_slice(L, 1), pattern = check_pattern(L, 2);
    int kind = lua_type(L, 3);
    if (kind == LUA_TNUMBER)
        kind = LUA_TSTRING;
    if (kind != LUA_TSTRING && kind != LUA_TTABLE && kind != LUA_TFUNCTION)
        return luaL_argerror(L, 3, "string, function or table expected");
    lua_Integer max = luaL_optinteger(L, 4, (lua_Integer)subject.len + 1);
    lua_settop(L, 4);
    struct buf *out = lua_env_buffer(L, MAX_RESULT);
    bool is_anchored = pattern.len > 0 && pattern.ptr[0] == '^';
    const char *text = pattern.ptr + is_anchored, *s = subject.ptr;
    struct pattern state;
    pattern_init(&state, subject, pattern, MAX_STEPS);
    const char *copied = s; // what lies before is in the result
    lua_Integer count = 0;
    while (count < max) {
        state.level = 0;
        state.steps = MAX_STEPS;
        const char *end = pattern_match(&state, s, text);
        charge_steps(L, MAX_STEPS, state.steps);
        check_error(L, &state);
        if (end) {
            lua_env_charge(L, MATCH_COST);
            count++;
            add_bytes(L, out, slice_of(copied, (size_t)(s - copied)));
            add_value(L, out, &state, s, end, kind);
            copied = end;
        }
        if (end && end > s)
            s = end;
        else if (s < state.subject_end)
            s++;
        else
            break;
        if (is_anchored)
            break;
    }
    add_bytes(L, out, slice_of(copied, (size_t)(state.subject_end - copied)));
    lua_env_push_slice(L, buf_slice(out));
    buf_free(out); // not only when collected: C memory is not seen by the collector
    lua_pushinteger(L, count);
    return 2;
}

static int string_rep(lua_State *L)
{
    struct slice text = lua_env_check_slice(L, 1);
    lua_Integer count = luaL_checkinteger(L, 2);
    struct slice between = {luaL_optlstring(L, 3, "", NULL), 0};
    between.len = strlen(between.ptr);
    if (count <= 0) {
        lua_pushliteral(L, "");
        return 1;
    }
    size_t unit = text.len + between.len;
    if (unit > 0 && (size_t)count > MAX_RESULT / unit)
        return luaL_error(L, "result of rep is too long");
    lua_env_charge(L, unit * (size_t)count / 64);
    struct buf *out = lua_env_buffer(L, MAX_RESULT);
    size_t total = unit * (size_t)count - between.len;
    char *room = total > 0 ? buf_room(out, total) : NULL;
    if (total > 0 && !room)
        return luaL_error(L, "result of rep is too long");
    if (unit == 1 && total > 0) {
        memset(room, text.len ? text.ptr[0] : between.ptr[0], total);
    } else {
        memcpy(room, text.ptr, text.len);
        if (total > text.len)
            memcpy(room + text.len, between.ptr, between.len);
        for (size_t done = unit; done < total; done *= 2) // unit by unit would take too long
            memcpy(room + done, room, done < total - done ? done : total - done);
    }
    if (total > 0)
        buf_grew(out, total);
    lua_env_push_slice(L, buf_slice(out));
    buf_free(out);
    return 1;
}

void sandbox_open_string(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"find", string_find}, {"match", string_match}, {"gmatch", string_gmatch},
        {"gsub", string_gsub}, {"rep", string_rep},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        lua_pushcfunction(L, functions[i].func);
        lua_setfield(L, -2, functions[i].name);
    }
}

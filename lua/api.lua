--- The plugin API as data: what a plugin table may hold, the hooks, every field and function of
-- `ctx` and `gw`, the libraries. docs/plugin-api.md is generated from it (`moongate plugin docs`),
-- and tests hold it against what the host really offers.
--
-- An entry: { name, signature or type, about, yields = true, needs = "…" }.
local api = {}

api.plugin = {
  { "name", "text", "Lower-case letters, digits and `_`; the folder's name. Required." },
  { "version", "text", "The plugin's own version." },
  { "api", "number", "The version of this contract: `1`. Required." },
  { "about", "text", "One sentence for people." },
  { "after, before", "list of names", "Checked against the order in gateway.conf.lua." },
  { "config", "schema.record", "The settings: checked at load, defaults filled in, given as `conf`."
    .. " Without it the plugin takes none." },
  { "needs", "table", "Capabilities; anything else is refused when it is called. `fetch` (list of"
    .. " hosts, or `true` for any public host), `db`, `ledger`, `process` (booleans), `secrets`"
    .. " (names), `keys`, `upstreams`, `logs`, `prices` (`\"read\"` or `\"write\"`)." },
  { "on_error", "text", "`\"deny\"` (default) or `\"skip\"`: what a hook that raises or exceeds its"
    .. " budget means for the call." },
  { "init", "function(gw, conf)", "Once per worker and generation; may not yield." },
  { "close", "function(gw)", "When the generation ends." },
  { "hooks", "table", "See Hooks." },
  { "wants", "list", "For the hook `delta`: `\"text\"`, `\"thinking\"`, `\"tool\"`." },
  { "routes", "list", "See Routes." },
  { "render_error", "function(err) → status, table [, headers]", "The shape of this plugin's route"
    .. " errors; `err = {status, code, message, details = {{path, message, kind}, …}}`." },
  { "tasks", "list", "`{ name =, every = seconds or daily = \"HH:MM\" (UTC), on = \"worker\","
    .. " \"process\" or \"cluster\", run = function(gw, conf), timeout = seconds }`." },
  { "migrations", "text", "Folder of `NNNN_name.sql`; tables must be called `p_<plugin>_*`." },
  { "quirks", "table", "See Quirks." },
  { "metrics", "list", "`{ name =, kind = \"counter\", \"gauge\" or \"histogram\", help =, labels ="
    .. " {…} }`; exported as `moongate_<plugin>_<name>`." },
  { "models", "list", "`{ id =, owned_by = }`: models that the plugin answers itself." },
  { "console", "table", "Kept for the console." },
}

api.hooks = {
  { "identify", "function(ctx, conf) → true or nil", "Who calls: `ctx:identify{…}` or"
    .. " `gw.keys.authenticate(ctx)`. The first non-nil wins; nobody: 401.", yields = true },
  { "admit", "function(ctx, conf) → nil or requirements", "May they: `ctx:deny(…)` refuses. All run"
    .. " until one denies.", yields = true },
  { "select", "function(ctx, conf) → list of upstream ids or views, or nil", "In which order"
    .. " upstreams are tried; or an answer by `ctx:respond` / `ctx:stream`. Called again for each"
    .. " further attempt (`ctx.attempt` ≥ 2); nil then means: the rest of the earlier list.",
    yields = true },
  { "prepare", "function(ctx, conf)", "Edits `ctx.outgoing`. Chains.", yields = true },
  { "reply", "function(ctx, conf) → nil, \"pass\" or \"retry\"", "The outcome of every attempt,"
    .. " before anything was sent. `ctx:deny` and `ctx:respond` replace the answer.",
    yields = true },
  { "body", "function(ctx, text, conf) → nil or text", "A whole answer. Turns passthrough off.",
    yields = true },
  { "delta", "function(ctx, kind, text, conf) → nil, text or false", "One piece of a stream:"
    .. " unchanged, replaced, dropped." },
  { "price", "function(ctx, cost, conf) → cost", "Pure. Chains." },
  { "error", "function(ctx, err, conf) → nil or {status =, code =, message =, retry_after =}",
    "The final failure, before it is rendered.", yields = true },
  { "finish", "function(ctx, conf)", "Always once, at the very end.", yields = true },
}

api.ctx = {
  { "id", "text", "The exchange's own id." },
  { "request_id", "text", "The client's x-request-id, or ours." },
  { "method", "text", "HTTP method." },
  { "path", "text", "As received." },
  { "query", "text or nil", "Raw." },
  { "headers", "table", "By lower-case name; credentials read as nil." },
  { "client_ip", "text", "After trusted proxies." },
  { "dialect", "text", "`openai`, `responses` or `claude`." },
  { "op", "text", "`chat`, `completions`, `embeddings`, `responses`, `messages`, `count_tokens`,"
    .. " `other`." },
  { "model", "text or nil", "As requested." },
  { "is_stream", "boolean", "The client asked for a stream." },
  { "max_output", "number or nil", "The client's output limit." },
  { "is_plugin_route", "boolean", "The request is for a plugin's route." },
  { "started_ms", "number", "Wall clock." },
  { "attempt", "number", "1 for the first." },
  { "tried", "table", "Upstream id → `{status, reason}`." },
  { "can_retry", "boolean", "Nothing was sent yet and candidates are left." },
  { "candidates", "list", "Upstream ids in order." },
  { "key", "table or nil", "`{id, uid, name, prefix, user_id, upstream_ids, allowed_models}`." },
  { "user", "table or nil", "`{id, name, group, discount}`." },
  { "identity", "text or nil", "The name given to `ctx:identify`." },
  { "upstream", "table or nil", "`{id, uid, name, provider, model, status, headers}`." },
  { "usage", "table or nil", "`{input, cache_read, cache_write_5m, cache_write_1h, audio_in,"
    .. " image_in, output, reasoning, audio_out, prompt, completion, total, estimated}`." },
  { "cost", "money or nil", "What the call costs." },
  { "status", "number or nil", "As sent to the client." },
  { "error", "table or nil", "`{kind, status, code, message, retry_after_ms}`." },
  { "finish_reason", "text or nil", "As the upstream said." },
  { "ttft_ms", "number", "To the first token." },
  { "duration_ms", "number", "Of the whole exchange." },
  { "flags", "list", "Texts." },
  { "vars", "table", "The plugin's own, for this exchange." },
  { "gw", "table", "The plugin's `gw`." },
  { "body_size", "number", "Bytes of the request body." },
  { "outgoing", "object", "Of `prepare`; see below." },
}

api.ctx_methods = {
  { "body", "ctx:body() → text, or nil, \"too large\"", "The request body (a copy, ≤ 1 MiB)." },
  { "json", "ctx:json() → table", "The request body, decoded." },
  { "field", "ctx:field(path) → value", "One scalar of the body without decoding the rest." },
  { "identify", "ctx:identify{ key = view, user = view, name = \"…\" }", "Who the caller is." },
  { "deny", "ctx:deny(status, code, message [, {retry_after =, should_retry =}])",
    "Refuses, in the client's dialect." },
  { "respond", "ctx:respond{ status =, text = | json = | body = | events =, content_type =,"
    .. " headers = }", "Answers the call." },
  { "stream", "ctx:stream(function(emit) … end)", "Answers with events: `emit{kind = \"text\","
    .. " text = …}`, `thinking`, `tool`, `usage`, `finish`. A client that wants a whole answer gets"
    .. " the same events as one body. `emit` yields." },
  { "flag", "ctx:flag(name)", "Marks the exchange in its log row." },
  { "log", "ctx:log(level, event [, fields])", "One line with the request's id." },
}

api.outgoing = {
  { "set_field", "ctx.outgoing:set_field(path, value)", "Sets a field of the body." },
  { "drop_field", "ctx.outgoing:drop_field(path)", "Removes one." },
  { "rename_field", "ctx.outgoing:rename_field(path, name)", "Renames one." },
  { "set_header", "ctx.outgoing:set_header(name, value or nil)", "Sets or drops a header." },
  { "set_path", "ctx.outgoing:set_path(path)", "Replaces the path." },
  { "set_query", "ctx.outgoing:set_query(query)", "Replaces the query." },
}

api.gw = {
  { "plugin", "text", "The plugin's name." },
  { "worker", "number", "Index of the worker." },
  { "version", "text", "The gateway's version." },
  { "generation", "number", "Rises with each reload." },
  { "now", "gw.now() → seconds", "Wall clock." },
  { "now_ms", "gw.now_ms() → milliseconds", "Wall clock." },
  { "boot_ms", "gw.boot_ms() → milliseconds", "Never goes back." },
  { "sleep", "gw.sleep(seconds)", "Waits.", yields = true },
  { "all", "gw.all{ fn, … } → list of {ok, value | error}", "Runs functions side by side.",
    yields = true },
  { "spawn", "gw.spawn(fn)", "Runs a function after the hook, in a coroutine of its own." },
  { "lock", "gw.lock(name, ttl_s [, wait_s]) → lock, or nil, \"busy\"", "`lock:release()`; released"
    .. " with the coroutine.", yields = true },
  { "fetch", "gw.fetch{ url =, method =, headers =, body = | json =, timeout =, max_bytes =,"
    .. " secret_fields = } → {status, headers, body}, or nil, err", "HTTP, address-checked.",
    yields = true, needs = "fetch" },
  { "db.query", "gw.db.query(sql, …) → rows, or nil, err", "Bound parameters only.", yields = true,
    needs = "db" },
  { "db.transaction", "gw.db.transaction{ {sql, args =, expect_rows =}, … } → {changes}, or nil,"
    .. " err", "Sent whole.", yields = true, needs = "db" },
  { "keys.authenticate", "gw.keys.authenticate(ctx) → view, or nil, reason", "`missing`,"
    .. " `conflict`, `invalid` or `disabled`. Sets `ctx.key` and `ctx.user`." },
  { "keys.find", "gw.keys.find(secret) → view or nil", "The key that a secret handle holds." },
  { "keys.create", "gw.keys.create{…} → table, or nil, err", "The only time the key is seen.",
    yields = true, needs = "keys = write" },
  { "keys.list", "gw.keys.list{…} → table, or nil, err", "", yields = true, needs = "keys = read" },
  { "keys.get", "gw.keys.get(uid) → table, or nil, err", "", yields = true, needs = "keys = read" },
  { "keys.update", "gw.keys.update{ uid =, … } → table, or nil, err", "", yields = true,
    needs = "keys = write" },
  { "keys.revoke", "gw.keys.revoke(uid) → table, or nil, err", "", yields = true,
    needs = "keys = write" },
  { "upstreams.candidates", "gw.upstreams.candidates(ctx) → list of views", "Those that may serve"
    .. " this call: `{id, uid, name, provider, model, native, weight, priority, is_default, usable,"
    .. " cooling, in_flight, latency_ms, allowed}`." },
  { "upstreams.all", "gw.upstreams.all() → list of views", "Without secrets.",
    needs = "upstreams = read" },
  { "upstreams.health", "gw.upstreams.health(id) → table", "What is known of its health." },
  { "upstreams.create", "gw.upstreams.create{…} → table, or nil, err", "", yields = true,
    needs = "upstreams = write" },
  { "upstreams.list", "gw.upstreams.list{…} → table, or nil, err", "", yields = true,
    needs = "upstreams = read" },
  { "upstreams.get", "gw.upstreams.get(uid) → table, or nil, err", "", yields = true,
    needs = "upstreams = read" },
  { "upstreams.update", "gw.upstreams.update{ uid =, … } → table, or nil, err", "", yields = true,
    needs = "upstreams = write" },
  { "upstreams.delete", "gw.upstreams.delete(uid) → table, or nil, err", "", yields = true,
    needs = "upstreams = write" },
  { "logs.list", "gw.logs.list{…} → table, or nil, err", "Newest first.", yields = true,
    needs = "logs = read" },
  { "logs.get", "gw.logs.get(id) → table, or nil, err", "", yields = true, needs = "logs = read" },
  { "logs.prune", "gw.logs.prune{ before_ms = } → table, or nil, err", "", yields = true,
    needs = "logs = write" },
  { "logs.rollups", "gw.logs.rollups{…} → table, or nil, err", "Hourly sums.", yields = true,
    needs = "logs = read" },
  { "prices.cost", "gw.prices.cost(ctx [, {rates in ppm}]) → money, version, or nil",
    "nil: no price, or no usage." },
  { "prices.put", "gw.prices.put{ model =, … } → table, or nil, err", "", yields = true,
    needs = "prices = write" },
  { "prices.list", "gw.prices.list{…} → table, or nil, err", "", yields = true,
    needs = "prices = read" },
  { "prices.delete", "gw.prices.delete(model) → table, or nil, err", "", yields = true,
    needs = "prices = write" },
  { "models.list", "gw.models.list(ctx) → list of {id, owned_by, created}", "What the caller may"
    .. " use." },
  { "random", "gw.random(n) → 1..n; gw.random() → 0 ≤ x < 1", "Of the system's generator." },
  { "random_u32", "gw.random_u32() → number", "32 random bits." },
  { "secret", "gw.secret(name) → handle or nil", "Opaque: no function gives its bytes to Lua.",
    needs = "secrets" },
  { "kv.get", "gw.kv.get(key) → value or nil", "Shared by all workers of the process." },
  { "kv.set", "gw.kv.set(key, value [, ttl_s])", "" },
  { "kv.add", "gw.kv.add(key, value [, ttl_s]) → boolean", "Only when it is not there." },
  { "kv.drop", "gw.kv.drop(key)", "" },
  { "kv.incr", "gw.kv.incr(key, n [, ttl_s]) → number", "" },
  { "crypto.sha256hex", "gw.crypto.sha256hex(text) → hex", "" },
  { "crypto.hmac_sha256", "gw.crypto.hmac_sha256(secret, text) → hex", "" },
  { "crypto.md5hex", "gw.crypto.md5hex(part, …) → hex", "For protocols that ask for it." },
  { "crypto.token", "gw.crypto.token(n) → text", "n random bytes." },
  { "crypto.mask", "gw.crypto.mask(text or secret) → text", "" },
  { "crypto.equal", "gw.crypto.equal(a, b) → boolean", "In constant time." },
  { "crypto.uuid", "gw.crypto.uuid() → text", "" },
  { "crypto.fernet_encrypt", "gw.crypto.fernet_encrypt(secret) → token", "With our key ring." },
  { "crypto.fernet_decrypt", "gw.crypto.fernet_decrypt(token) → secret, or nil, why", "" },
  { "json.encode", "gw.json.encode(value) → text", "" },
  { "json.decode", "gw.json.decode(text) → value, or nil, why", "" },
  { "json.array", "gw.json.array{…} → table", "Marks a table as an array, also an empty one." },
  { "json.null", "value", "Stands for null." },
  { "metrics.add", "gw.metrics.add(name, labels, n)", "A declared counter." },
  { "metrics.set", "gw.metrics.set(name, labels, n)", "A declared gauge." },
  { "metrics.observe", "gw.metrics.observe(name, labels, seconds)", "A declared histogram." },
  { "log.debug", "gw.log.debug(event [, fields])", "" },
  { "log.info", "gw.log.info(event [, fields])", "" },
  { "log.warn", "gw.log.warn(event [, fields])", "" },
  { "log.error", "gw.log.error(event [, fields])", "" },
  { "process.reload", "gw.process.reload() → true, or nil, problems", "", yields = true,
    needs = "process" },
  { "process.info", "gw.process.info() → table", "", needs = "process" },
  { "process.ready", "gw.process.ready() → {ready, reasons}", "", needs = "process" },
  { "process.metrics", "gw.process.metrics() → text", "Prometheus.", needs = "process" },
  { "conf", "gw.conf(path) → value", "A key of gateway.conf.lua; secrets are refused." },
  { "plugins", "gw.plugins() → list", "`{name, version, about, routes, hooks, config, …}`." },
}

api.schema = {
  { "text", "min, max, pattern, enum, trim, empty_null", "Lengths in characters. `pattern`: a POSIX"
    .. " extended expression that matches the whole text." },
  { "integer", "min, max", "A whole number, to 2^53." },
  { "number", "min, max", "" },
  { "boolean", "", "" },
  { "decimal", "min, max", "Money: number or text, read exactly; a money value." },
  { "rate", "min, max", "Parts per million as a number; written 0.85." },
  { "duration", "min, max", "Seconds; written 1.5 or \"30s\", \"250ms\", \"5m\", \"2h\", \"1d\"." },
  { "time", "min, max", "ISO 8601; milliseconds since 1970." },
  { "uuid", "", "Lower case." },
  { "url", "max", "http or https." },
  { "secret", "", "Written \"$NAME\"; a handle, in settings." },
  { "list", "of, min, max", "" },
  { "record", "the fields (or `fields = {…}`)", "Unknown fields are refused." },
  { "map", "of, min, max", "Any names." },
  { "any", "", "Anything." },
  { "null_or", "a schema", "The same, or null." },
}

api.quirks = {
  { "formats", "list", "Dialects it speaks: `openai`, `responses`, `claude`." },
  { "auth", "{ header =, prefix = }", "Where the upstream's own key goes." },
  { "headers", "table", "Set when the client sent none." },
  { "set_headers", "table", "Set always." },
  { "forward", "list", "Client headers passed on besides the standard ones." },
  { "drop_headers", "list", "Never sent." },
  { "fields", "{ drop = {…}, rename = {…}, default = {…} }", "Edits of the body; dotted paths." },
  { "paths", "operation → template", "With `{model}` and `{config.name}`." },
  { "query", "template", "Likewise." },
  { "stream_usage", "text", "`inject` (default), `never` or `always_sent`." },
  { "usage", "text", "How usage is read: `openai`, `exclusive`, `responses`, `claude`." },
}

api.money = {
  { "parse", "money.parse(text) → money, or nil, why", "" },
  { "usd", "money.usd(text) → money", "Raises on a bad amount." },
  { "zero", "money.zero", "" },
  { "nano", "money.nano(n) → money", "" },
  { "scale", "money.scale(m, rate) → money", "Rate in ppm (number) or as a decimal text." },
  { "nano_text", "money.nano_text(m) → text", "" },
  { "is", "money.is(value) → boolean", "" },
}


return api

--- /admin/upstreams: where model calls go. An upstream's key goes in and never comes out.
local detail_error = require("detail_error")
local paginate = require("paginate")
local row_view = require("row_view")

local upstreams = {}

local or_null, time = row_view.or_null, row_view.time

local DEFAULT_TIMEOUT = 60 -- shown for upstreams that have the process's timers


-- This surface shows the free settings as text.
local function config_text(gw, config)
  if type(config) == "table" and config ~= json.null then
    return gw.json.encode(config)
  end
  return or_null(config)
end


local function show(gw, row)
  return {
    id = row.uid,
    name = row.name,
    provider = row.provider,
    base_url = row.base_url,
    api_key_masked = or_null(row.api_key_masked),
    is_default = row.is_default,
    timeout = row_view.or_nil(row.timeout) or DEFAULT_TIMEOUT,
    is_active = row.is_active,
    config = config_text(gw, row.config),
    created_at = time(row.created_ms),
    updated_at = time(row.updated_ms),
    formats = or_null(row.formats),
    models = or_null(row.models),
    weight = row.weight,
    priority = row.priority,
    passthrough = or_null(row.passthrough),
    disconnect = or_null(row.disconnect),
    max_concurrency = row.max_concurrency,
    connect_ms = row.connect_ms,
    tls_ms = row.tls_ms,
    first_byte_ms = row.first_byte_ms,
    event_ms = row.event_ms,
  }
end


local function create(req, gw)
  local row, err = gw.upstreams.create(row_view.without_nulls(req.body))
  if not row then
    return detail_error.of_service(err)
  end
  return 201, show(gw, row)
end


local function list(req, gw)
  local result, err = gw.upstreams.list { page = req.query.page, page_size = req.query.page_size }
  if not result then
    return detail_error.of_service(err)
  end
  return 200, paginate.answer(result, req.query, function(row) return show(gw, row) end)
end


local function missing_text(uid)
  return string.format("Upstream not found: %s", uid)
end


local function update(req, gw)
  local changes = row_view.without_nulls(req.body)
  changes.uid = req.params.uid
  local row, err = gw.upstreams.update(changes)
  if not row then
    return detail_error.of_service(err, missing_text(req.params.uid))
  end
  return 200, show(gw, row)
end


local function delete(req, gw)
  local done, err = gw.upstreams.delete(req.params.uid)
  if not done then
    return detail_error.of_service(err, missing_text(req.params.uid))
  end
  return 204
end


local function timer(about)
  return schema.null_or(schema.integer { optional = true, min = 0, max = 3600000,
    about = about .. ", in ms; 0: the timer of the configuration" })
end


-- What may be given for new and for changed upstreams beside the required fields.
local function optional_fields()
  return {
    is_default = schema.null_or(schema.boolean { optional = true,
      about = "goes first among equals; another default is cleared" }),
    timeout = schema.null_or(schema.integer { optional = true, min = 1, max = 300,
      about = "seconds to the first byte; absent: the timers of the configuration" }),
    config = schema.null_or(schema.any { optional = true,
      about = "settings for plugins: an object, or its JSON text" }),
    formats = schema.null_or(schema.list { optional = true, min = 1, max = 3,
      of = schema.text { enum = { "openai", "responses", "claude" } },
      about = "dialects it speaks; absent: by provider" }),
    models = schema.null_or(schema.any { optional = true,
      about = "names, or an object public name → upstream's name; absent: any" }),
    weight = schema.null_or(schema.integer { optional = true, min = 1, max = 1000000,
      about = "share among upstreams of one priority" }),
    priority = schema.null_or(schema.integer { optional = true, min = -1000000, max = 1000000,
      about = "higher goes first" }),
    passthrough = schema.null_or(schema.text { optional = true, enum = { "all" },
      about = "\"all\" passes routes that keep state at the provider" }),
    disconnect = schema.null_or(schema.text { optional = true, enum = { "cancel", "drain" },
      about = "what becomes of a call whose client left" }),
    max_concurrency = schema.null_or(schema.integer { optional = true, min = 0, max = 1000000,
      about = "calls in flight together; 0: any number. A full upstream is passed over" }),
    connect_ms = timer("look-up and TCP connect"),
    tls_ms = timer("TLS handshake"),
    first_byte_ms = timer("from the request's last byte to the answer's head"),
    event_ms = timer("between two reads of an answer"),
  }
end


local function name_field(is_optional)
  return schema.text { min = 1, max = 64, optional = is_optional, about = "unique" }
end


local function new_upstream()
  local fields = optional_fields()
  fields.name = name_field(false)
  fields.provider = schema.text { min = 1, max = 32, about = "picks the provider plugin" }
  fields.base_url = schema.url { about = "with or without a last /v1" }
  fields.api_key = schema.text { min = 1, max = 4096, about = "the provider's key" }
  return schema.record { fields = fields }
end


local function changed_upstream()
  local fields = optional_fields()
  fields.name = schema.null_or(name_field(true))
  fields.provider = schema.null_or(schema.text { optional = true, min = 1, max = 32 })
  fields.base_url = schema.null_or(schema.url { optional = true })
  fields.api_key = schema.null_or(schema.text { optional = true, max = 4096,
    about = "absent or empty: unchanged" })
  fields.is_active = schema.null_or(schema.boolean { optional = true })
  return schema.record { fields = fields }
end


local UID = { uid = schema.uuid {} }

upstreams.routes = {
  { "POST", "/admin/upstreams", create, auth = "admin", body = new_upstream(),
    about = "Adds an upstream; it serves at once.",
    responses = { [201] = "The upstream.", [400] = "The name is taken.",
      [422] = "The body does not fit." } },
  { "GET", "/admin/upstreams", list, auth = "admin", query = paginate.query(),
    about = "Upstreams, the newest first, inactive ones too." },
  { "PUT", "/admin/upstreams/{uid}", update, auth = "admin", params = UID,
    body = changed_upstream(), about = "Changes what is given.",
    responses = { [200] = "The upstream.", [400] = "The name is taken.",
      [404] = "There is no such upstream.", [422] = "The body does not fit." } },
  { "DELETE", "/admin/upstreams/{uid}", delete, auth = "admin", params = UID,
    about = "Switches an upstream off; its row stays for the logs.",
    responses = { [204] = "Switched off.", [404] = "There is no such upstream." } },
}

return upstreams

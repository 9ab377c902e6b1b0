--- /admin/keys: client keys. A key's text is shown once, in the answer that makes it.
local detail_error = require("detail_error")
local paginate = require("paginate")
local row_view = require("row_view")

local keys = {}

local or_null, time = row_view.or_null, row_view.time


local function show(row)
  return {
    id = row.uid,
    key_prefix = row.key_prefix,
    name = row.name,
    description = or_null(row.description),
    upstream_ids = json.array(row.upstream_ids),
    is_active = row.is_active,
    expires_at = time(row.expires_ms),
    created_at = time(row.created_ms),
    updated_at = time(row.updated_ms),
  }
end


local function create(req, gw)
  local body = row_view.without_nulls(req.body)
  local row, err = gw.keys.create {
    name = body.name,
    description = body.description,
    upstream_ids = body.upstream_ids,
    expires_at_ms = body.expires_at,
  }
  if not row then
    return detail_error.of_service(err)
  end
  local answer = show(row)
  answer.key_value = row.key_value
  return 201, answer
end


local function list(req, gw)
  local result, err = gw.keys.list { page = req.query.page, page_size = req.query.page_size }
  if not result then
    return detail_error.of_service(err)
  end
  return 200, paginate.answer(result, req.query, show)
end


local function revoke(req, gw)
  local done, err = gw.keys.revoke(req.params.uid)
  if not done then
    return detail_error.of_service(err, string.format("API key not found: %s", req.params.uid))
  end
  return 204
end


local NEW_KEY = schema.record {
  name = schema.text { min = 1, max = 255, about = "for people" },
  description = schema.null_or(schema.text { optional = true, max = 4096 }),
  upstream_ids = schema.list { of = schema.uuid {}, min = 1, max = 1000,
    about = "upstreams that the key may use" },
  expires_at = schema.null_or(schema.time { optional = true, about = "ISO 8601; absent: never" }),
}

keys.routes = {
  { "POST", "/admin/keys", create, auth = "admin", body = NEW_KEY,
    about = "Makes a key; key_value is shown in this answer only.",
    responses = { [201] = "The key.", [400] = "An upstream is unknown or inactive.",
      [422] = "The body does not fit." } },
  { "GET", "/admin/keys", list, auth = "admin", query = paginate.query(),
    about = "Keys, the newest first." },
  { "DELETE", "/admin/keys/{uid}", revoke, auth = "admin", params = { uid = schema.uuid {} },
    about = "Revokes a key at once.",
    responses = { [204] = "Revoked.", [404] = "There is no such key." } },
}

return keys

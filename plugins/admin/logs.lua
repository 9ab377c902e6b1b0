--- /admin/logs: finished calls, the newest first.
local detail_error = require("detail_error")
local iso_time = require("iso_time")
local paginate = require("paginate")
local row_view = require("row_view")

local logs = {}

local or_null = row_view.or_null


-- Rows have empty texts where this surface has null.
local function text_or_null(text)
  return text ~= "" and or_null(text) or json.null
end


local function show(row)
  return {
    id = row.id,
    api_key_id = or_null(row.key_uid),
    upstream_id = or_null(row.upstream_uid),
    method = row.method,
    path = row.path,
    model = text_or_null(row.model),
    prompt_tokens = row.prompt_tokens,
    completion_tokens = row.completion_tokens,
    total_tokens = row.total_tokens,
    status_code = row.status ~= 0 and row.status or json.null,
    duration_ms = or_null(row.duration_ms),
    error_message = text_or_null(row.error_message),
    created_at = row_view.time(row.created_ms),
  }
end


-- Milliseconds, or nil and an answer. These two are 400 here, not 422.
local function read_time(query, name)
  local text = query[name]
  if text == nil then
    return nil
  end
  local ms = iso_time.parse(text)
  if ms then
    return ms
  end
  return nil, string.format("Invalid %s format: %s", name, text)
end


local function list(req, gw)
  local query = req.query
  local start_ms, bad_start = read_time(query, "start_time")
  local end_ms, bad_end = read_time(query, "end_time")
  if bad_start or bad_end then
    return detail_error.answer(400, "invalid_request", bad_start or bad_end)
  end
  local result, err = gw.logs.list {
    page = query.page,
    page_size = query.page_size,
    key_uid = query.api_key_id,
    upstream_uid = query.upstream_id,
    status = query.status_code,
    start_ms = start_ms,
    end_ms = end_ms,
  }
  if not result then
    return detail_error.of_service(err)
  end
  return 200, paginate.answer(result, query, show)
end


local QUERY = paginate.query {
  api_key_id = schema.uuid { optional = true },
  upstream_id = schema.uuid { optional = true },
  status_code = schema.integer { optional = true, min = 100, max = 599 },
  start_time = schema.text { optional = true, max = 64, about = "ISO 8601, inclusive" },
  end_time = schema.text { optional = true, max = 64, about = "ISO 8601, inclusive" },
}

logs.routes = {
  { "GET", "/admin/logs", list, auth = "admin", query = QUERY,
    about = "The request log, the newest first." },
}

return logs

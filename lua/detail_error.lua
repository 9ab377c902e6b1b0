--- Errors of surface B: {"detail": {"error", "message"}}, and {"detail": [ … ]} for input that does
-- not fit its schema, as FastAPI shows it.
local detail_error = {}

-- Problem kinds of the host → types that FastAPI's clients know.
local TYPES = {
  missing = "missing", unknown = "extra_forbidden", type = "type_error", range = "value_error",
  length = "value_error", pattern = "string_pattern_mismatch", enum = "enum",
  format = "value_error", json = "json_invalid",
}

-- Codes of gw's services → status and code; all others say that the request was wrong.
local SERVICE = {
  not_found = { 404, "not_found" },
  busy = { 503, "service_unavailable" },
  timeout = { 503, "service_unavailable" },
  cancelled = { 503, "service_unavailable" },
  internal = { 500, "internal_error" },
}


--- An answer that is an error.
-- @param status number
-- @param code string
-- @param message string
-- @return number, table
function detail_error.answer(status, code, message)
  return status, { detail = { error = code, message = message } }
end


--- The answer for a service of gw that failed.
-- @param err table { code, message }
-- @param[opt] missing string message of a 404
-- @return number, table
function detail_error.of_service(err, missing)
  local known = SERVICE[err.code]
  if not known then
    return detail_error.answer(400, "invalid_request", err.message)
  end
  local message = err.code == "not_found" and missing or err.message
  return detail_error.answer(known[1], known[2], message)
end


-- "body.upstream_ids.0" → { "body", "upstream_ids", 0 }
local function location(path)
  local parts = json.array {}
  for part in path:gmatch("[^%.]+") do
    parts[#parts + 1] = tonumber(part) or part
  end
  return parts
end


local function render_problems(details)
  local list = json.array {}
  for i, problem in ipairs(details or {}) do
    list[i] = {
      loc = location(problem.path),
      msg = problem.message,
      type = TYPES[problem.kind] or "value_error",
    }
  end
  return 422, { detail = list }
end


--- A plugin's render_error: refused callers get 403 whatever was wrong with their credential.
-- @param err table { status, code, message, details }
-- @return number, table
function detail_error.render(err)
  if err.code == "validation_error" or err.code == "invalid_json" then
    return render_problems(err.details)
  elseif err.status == 401 or err.status == 403 then
    return detail_error.answer(403, "forbidden", "Admin access required")
  end
  return detail_error.answer(err.status, err.code, err.message)
end


return detail_error

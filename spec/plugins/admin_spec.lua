local testing = require("testing")

local UID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
local OTHER = "0e37df36-f698-4e6b-8a57-2f1f0f7d1f5a"
local CREATED_MS, CREATED = 1763665200123, "2025-11-20T19:00:00.123Z"
local null = testing.json.null


describe("admin", function()
  local plugin, gw, calls, answers, failure

  -- A service that keeps what it was asked and gives answers[name], or fails.
  local function service(name)
    return function(request)
      calls[#calls + 1] = { name, request }
      if failure then
        return nil, failure
      end
      return answers[name]
    end
  end

  before_each(function()
    plugin = testing.load("admin")
    calls, answers, failure = {}, {}, nil
    gw = testing.gw {
      keys = { create = service("keys.create"), list = service("keys.list"),
        revoke = service("keys.revoke") },
      upstreams = { create = service("upstreams.create"), list = service("upstreams.list"),
        update = service("upstreams.update"), delete = service("upstreams.delete") },
      logs = { list = service("logs.list") },
      process = {
        info = function() return { version = "1.2.3" } end,
        reload = function()
          if failure then
            return nil, failure
          end
          return true, ""
        end,
      },
    }
  end)

  local function call(method, path, request)
    return testing.call(plugin, gw, method, path, request)
  end

  local function key_row(given)
    local row = {
      id = 3, uid = UID, key_prefix = "sk-auto-abcd", name = "ci", description = null,
      upstream_ids = { OTHER }, is_active = true, expires_ms = null, created_ms = CREATED_MS,
      updated_ms = CREATED_MS,
    }
    for name, value in pairs(given or {}) do
      row[name] = value
    end
    return row
  end

  local function upstream_row(given)
    local row = {
      id = 5, uid = UID, name = "main", provider = "openai", base_url = "https://u.example/v1",
      api_key_masked = "sk-***7890", is_default = true, timeout = null, is_active = true,
      config = null, created_ms = CREATED_MS, updated_ms = CREATED_MS,
      formats = { "openai", "responses" }, models = null, weight = 50, priority = 0,
      passthrough = null, disconnect = null,
    }
    for name, value in pairs(given or {}) do
      row[name] = value
    end
    return row
  end

  describe("authentication", function()
    it("answers 403 in the surface's envelope for any failure", function()
      for _, route in ipairs(plugin.routes) do
        assert.equal("admin", route.auth)
      end
      local status, body = call("GET", "/admin/keys", { principal = false })
      assert.equal(403, status)
      assert.same({ detail = { error = "forbidden", message = "Admin access required" } }, body)
    end)

    it("wraps what the host refuses", function()
      local status, body = plugin.render_error { status = 405, code = "method_not_allowed",
        message = "No.", details = {} }
      assert.equal(405, status)
      assert.same({ detail = { error = "method_not_allowed", message = "No." } }, body)
    end)
  end)

  describe("POST /admin/keys", function()
    it("makes a key and shows its text once", function()
      answers["keys.create"] = key_row { key_value = "sk-auto-abcdefgh", expires_ms = CREATED_MS }
      local status, body = call("POST", "/admin/keys", { body = {
        name = "ci", upstream_ids = { OTHER:upper() }, expires_at = "2025-11-20T19:00:00.123Z",
        description = null,
      } })
      assert.equal(201, status)
      assert.same({ id = UID, key_value = "sk-auto-abcdefgh", key_prefix = "sk-auto-abcd",
        name = "ci", description = null, upstream_ids = { OTHER }, is_active = true,
        expires_at = CREATED, created_at = CREATED, updated_at = CREATED }, body)
      assert.same({ name = "ci", upstream_ids = { OTHER }, expires_at_ms = CREATED_MS },
        calls[1][2])
    end)

    it("refuses a wrong body as a list of problems", function()
      local status, body = call("POST", "/admin/keys", { body = {
        name = "", upstream_ids = { "x" }, color = "red" } })
      assert.equal(422, status)
      assert.same({ "body", "color" }, body.detail[1].loc)
      assert.equal("extra_forbidden", body.detail[1].type)
      assert.same({ "body", "name" }, body.detail[2].loc)
      assert.same({ "body", "upstream_ids", 0 }, body.detail[3].loc)
      assert.equal(0, #calls)
    end)

    it("names missing fields as FastAPI does", function()
      local status, body = call("POST", "/admin/keys", { body = { name = "a" } })
      assert.equal(422, status)
      assert.same({ { loc = { "body", "upstream_ids" }, msg = "Field required",
        type = "missing" } }, body.detail)
      assert.equal(422, (call("POST", "/admin/keys", { body = { name = "a",
        upstream_ids = {} } })))
    end)

    it("shows malformed JSON as 422 too", function()
      local status, body = plugin.render_error { status = 400, code = "invalid_json",
        message = "…", details = { { path = "body", kind = "json", message = "no JSON" } } }
      assert.equal(422, status)
      assert.same({ { loc = { "body" }, msg = "no JSON", type = "json_invalid" } }, body.detail)
    end)

    it("says 400 for upstreams that are not there", function()
      failure = { code = "invalid_request",
        message = "Invalid or inactive upstream IDs: ['" .. OTHER .. "']" }
      local status, body = call("POST", "/admin/keys", { body = { name = "a",
        upstream_ids = { OTHER } } })
      assert.equal(400, status)
      assert.same({ detail = { error = "invalid_request", message = failure.message } }, body)
    end)

    it("says 503 when the database is busy and 500 when it failed", function()
      failure = { code = "busy", message = "the database is busy" }
      local body = { name = "a", upstream_ids = { OTHER } }
      assert.equal(503, (call("POST", "/admin/keys", { body = body })))
      failure = { code = "internal", message = "…" }
      assert.equal(500, (call("POST", "/admin/keys", { body = body })))
    end)
  end)

  describe("GET /admin/keys", function()
    it("shows a page without any key's text", function()
      answers["keys.list"] = { items = { key_row { key_value = "leak" } }, total = 41 }
      local status, body = call("GET", "/admin/keys", { query = { page = "2" } })
      assert.equal(200, status)
      assert.same({ page = 2, page_size = 20 }, calls[1][2])
      assert.equal(1, #body.items)
      assert.is_nil(body.items[1].key_value)
      assert.same({ 41, 2, 20, 3 },
        { body.total, body.page, body.page_size, body.total_pages })
    end)

    it("has one page when there is nothing", function()
      answers["keys.list"] = { items = {}, total = 0 }
      local _, body = call("GET", "/admin/keys")
      assert.equal(1, body.total_pages)
      assert.is_true(testing.json.is_array(body.items))
    end)

    it("refuses pages that cannot be", function()
      for _, query in ipairs { { page = "0" }, { page_size = "101" }, { page = "x" },
        { limit = "3" } } do
        assert.equal(422, (call("GET", "/admin/keys", { query = query })))
      end
    end)

    it("tells a failure of the list", function()
      failure = { code = "timeout", message = "…" }
      assert.equal(503, (call("GET", "/admin/keys")))
    end)
  end)

  describe("DELETE /admin/keys/{uid}", function()
    it("revokes", function()
      answers["keys.revoke"] = key_row()
      local status, body = call("DELETE", "/admin/keys/" .. UID)
      assert.equal(204, status)
      assert.is_nil(body)
      assert.same({ "keys.revoke", UID }, calls[1])
    end)

    it("says 404 for an unknown key and 422 for no UUID", function()
      failure = { code = "not_found", message = "API key not found" }
      local status, body = call("DELETE", "/admin/keys/" .. UID)
      assert.equal(404, status)
      assert.same({ detail = { error = "not_found", message = "API key not found: " .. UID } },
        body)
      status, body = call("DELETE", "/admin/keys/17")
      assert.equal(422, status)
      assert.same({ "path", "uid" }, body.detail[1].loc)
    end)
  end)

  describe("/admin/upstreams", function()
    local NEW = { name = "main", provider = "openai", base_url = "https://u.example/v1",
      api_key = "sk-1234567890" }

    local function with(changes)
      local body = {}
      for name, value in pairs(NEW) do
        body[name] = value
      end
      for name, value in pairs(changes) do
        body[name] = value
      end
      return { body = body }
    end

    it("adds one and shows the key masked", function()
      answers["upstreams.create"] = upstream_row()
      local status, body = call("POST", "/admin/upstreams",
        with { is_default = true, timeout = null })
      assert.equal(201, status)
      assert.same({ name = "main", provider = "openai", base_url = "https://u.example/v1",
        api_key = "sk-1234567890", is_default = true }, calls[1][2])
      assert.equal("sk-***7890", body.api_key_masked)
      assert.is_nil(body.api_key)
      assert.equal(60, body.timeout)
      assert.equal(UID, body.id)
      assert.equal(null, body.config)
      assert.equal(CREATED, body.created_at)
    end)

    it("shows settings as the text that clients sent", function()
      answers["upstreams.create"] = upstream_row { config = { region = "eu" }, timeout = 30 }
      local _, body = call("POST", "/admin/upstreams", with { config = '{"region":"eu"}' })
      assert.equal('{"region":"eu"}', calls[1][2].config)
      assert.equal('{"region":"eu"}', body.config)
      assert.equal(30, body.timeout)
    end)

    it("refuses wrong bodies", function()
      for _, changes in ipairs { { name = ("x"):rep(65) }, { name = "" }, { api_key = "" },
        { timeout = 0 }, { timeout = 301 }, { base_url = "ftp://x" }, { formats = { "x" } },
        { is_active = true } } do
        assert.equal(422, (call("POST", "/admin/upstreams", with(changes))))
      end
      assert.equal(422, (call("POST", "/admin/upstreams", { body = {} })))
    end)

    it("says 400 for a name that is taken", function()
      failure = { code = "invalid_request",
        message = "Upstream with name 'main' already exists" }
      local status, body = call("POST", "/admin/upstreams", with {})
      assert.equal(400, status)
      assert.equal("invalid_request", body.detail.error)
    end)

    it("lists all", function()
      answers["upstreams.list"] = { items = { upstream_row(), upstream_row() }, total = 2 }
      local status, body = call("GET", "/admin/upstreams", { query = { page_size = "100" } })
      assert.equal(200, status)
      assert.equal(2, #body.items)
      failure = { code = "busy", message = "…" }
      assert.equal(503, (call("GET", "/admin/upstreams")))
    end)

    it("changes what is given and takes null for not given", function()
      answers["upstreams.update"] = upstream_row { is_active = false }
      local status, body = call("PUT", "/admin/upstreams/" .. UID,
        { body = { is_active = false, name = null, api_key = "" } })
      assert.equal(200, status)
      assert.is_false(body.is_active)
      assert.same({ uid = UID, is_active = false, api_key = "" }, calls[1][2])
    end)

    it("says 404 for an unknown one", function()
      failure = { code = "not_found", message = "Upstream not found" }
      assert.equal(404, (call("PUT", "/admin/upstreams/" .. UID, { body = {} })))
      assert.equal(404, (call("DELETE", "/admin/upstreams/" .. UID)))
    end)

    it("switches one off", function()
      answers["upstreams.delete"] = upstream_row()
      assert.equal(204, (call("DELETE", "/admin/upstreams/" .. UID)))
      assert.same({ "upstreams.delete", UID }, calls[1])
    end)
  end)

  describe("GET /admin/logs", function()
    local function log_row()
      return { id = "01890000-0000-7000-8000-000000000000", key_uid = UID, upstream_uid = null,
        method = "POST", path = "/v1/chat/completions", model = "m", prompt_tokens = 3,
        completion_tokens = 2, total_tokens = 5, status = 200, duration_ms = 12,
        error_message = "", created_ms = CREATED_MS, cost_nano = 9, client_ip = "192.0.2.1" }
    end

    it("shows exactly the fields of the contract", function()
      answers["logs.list"] = { items = { log_row() }, total = 1 }
      local status, body = call("GET", "/admin/logs")
      assert.equal(200, status)
      assert.same({ id = "01890000-0000-7000-8000-000000000000", api_key_id = UID,
        upstream_id = null, method = "POST", path = "/v1/chat/completions", model = "m",
        prompt_tokens = 3, completion_tokens = 2, total_tokens = 5, status_code = 200,
        duration_ms = 12, error_message = null, created_at = CREATED }, body.items[1])
    end)

    it("filters", function()
      answers["logs.list"] = { items = {}, total = 0 }
      call("GET", "/admin/logs", { query = { api_key_id = UID, upstream_id = OTHER,
        status_code = "429", start_time = "2025-11-20T20:00:00+01:00",
        end_time = "2025-11-20T19:00:00.123Z", page = "3", page_size = "10" } })
      assert.same({ page = 3, page_size = 10, key_uid = UID, upstream_uid = OTHER, status = 429,
        start_ms = 1763665200000, end_ms = CREATED_MS }, calls[1][2])
    end)

    it("says 400 for times that cannot be read", function()
      for _, name in ipairs { "start_time", "end_time" } do
        local status, body = call("GET", "/admin/logs", { query = { [name] = "yesterday" } })
        assert.equal(400, status)
        assert.same({ detail = { error = "invalid_request",
          message = "Invalid " .. name .. " format: yesterday" } }, body)
      end
      assert.equal(0, #calls)
    end)

    it("says 422 for other wrong filters and tells failures", function()
      assert.equal(422, (call("GET", "/admin/logs", { query = { api_key_id = "1" } })))
      assert.equal(422, (call("GET", "/admin/logs", { query = { status_code = "ok" } })))
      failure = { code = "busy", message = "…" }
      assert.equal(503, (call("GET", "/admin/logs")))
    end)
  end)

  describe("the process", function()
    it("tells about itself and its plugins", function()
      gw.plugins = function() return { { name = "admin", routes = {}, hooks = {} } } end
      local status, body = call("GET", "/admin/info")
      assert.equal(200, status)
      assert.equal("1.2.3", body.version)
      status, body = call("GET", "/admin/plugins")
      assert.equal(200, status)
      assert.equal("admin", body.plugins[1].name)
      assert.is_true(testing.json.is_array(body.plugins[1].hooks))
    end)

    it("reloads", function()
      local status, body = call("POST", "/admin/reload")
      assert.equal(200, status)
      assert.same({ reloaded = true }, body)
    end)

    it("names the problems when a reload fails", function()
      failure = "plugins/a/init.lua:3: oops\nplugins/b/init.lua:4: no\n"
      local status, body = call("POST", "/admin/reload")
      assert.equal(400, status)
      assert.equal("reload_failed", body.detail.error)
      assert.same({ "plugins/a/init.lua:3: oops", "plugins/b/init.lua:4: no" },
        body.detail.problems)
    end)
  end)
end)

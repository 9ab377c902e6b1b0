local testing = require("testing")


describe("health", function()
  local plugin, gw, state

  before_each(function()
    plugin = testing.load("health")
    state = { ready = true, reasons = {} }
    gw = testing.gw { process = { ready = function() return state end } }
    plugin.init(gw, {})
  end)

  for _, path in ipairs { "/healthz", "/health", "/api/health" } do
    it("says at " .. path .. " that the process runs", function()
      local status, body = testing.call(plugin, gw, "GET", path)
      assert.equal(200, status)
      assert.same({ status = "ok" }, body)
    end)
  end

  it("is ready when the process is", function()
    local status, body = testing.call(plugin, gw, "GET", "/readyz")
    assert.equal(200, status)
    assert.same({ status = "ready", reasons = {} }, body)
    assert.is_true(testing.json.is_array(body.reasons))
  end)

  it("names the reasons when calls cannot be served", function()
    state = { ready = false, reasons = { "draining" } }
    local status, body = testing.call(plugin, gw, "GET", "/readyz")
    assert.equal(503, status)
    assert.same({ status = "unavailable", reasons = { "draining" } }, body)
  end)

  it("needs no credential", function()
    for _, route in ipairs(plugin.routes) do
      assert.equal("none", route.auth)
    end
  end)
end)

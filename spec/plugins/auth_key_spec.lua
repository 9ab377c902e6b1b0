local testing = require("testing")


describe("auth_key", function()
  local plugin, key, reason

  before_each(function()
    plugin = testing.load("auth_key")
    key, reason = nil, "missing"
    plugin.init(testing.gw {
      conf = { proxy_prefix = "/proxy" },
      keys = { authenticate = function() return key, reason end },
    }, {})
  end)

  local function identify(given)
    local ctx = testing.ctx(given)
    return plugin.hooks.identify(ctx, {}), ctx.done
  end

  it("identifies the caller of a known key", function()
    key = { id = 7 }
    local result, done = identify()
    assert.is_true(result)
    assert.is_nil(done.deny)
  end)

  it("gives one answer for every reason, which clients do not repeat", function()
    local first
    for _, why in ipairs { "missing", "conflict", "invalid" } do
      reason = why
      local result, done = identify()
      assert.is_nil(result)
      first = first or done.deny
      assert.same(first, done.deny)
    end
    assert.equal(401, first.status)
    assert.equal("invalid_api_key", first.code)
    assert.is_false(first.options.should_retry)
  end)

  it("tells the caller of a known key that its user is disabled", function()
    reason = "disabled"
    local _, done = identify()
    assert.equal(403, done.deny.status)
    assert.equal("user_disabled", done.deny.code)
  end)

  it("keeps the detail envelope below the second mount", function()
    local _, done = identify { path = "/proxy/v1/chat/completions" }
    assert.equal(401, done.respond.status)
    local detail = { error = "missing_api_key", message = "Authorization header required" }
    assert.same({ detail = detail }, done.respond.json)
    assert.equal("false", done.respond.headers["x-should-retry"])
    reason = "invalid"
    _, done = identify { path = "/proxy/v1/chat/completions" }
    assert.equal("invalid_api_key", done.respond.json.detail.error)
  end)

  it("does not take another path for the second mount", function()
    local _, done = identify { path = "/proxyfoo/v1/chat/completions" }
    assert.equal(401, done.deny.status)
  end)
end)

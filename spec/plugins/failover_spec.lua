local testing = require("testing")


describe("failover", function()
  local plugin, conf

  before_each(function()
    plugin = testing.load("failover")
    conf = assert(testing.config(plugin, {}))
    plugin.init(testing.gw(), conf)
  end)

  local function reply(failure, given)
    given = given or {}
    given.error = failure
    local ctx = testing.ctx(given)
    return plugin.hooks.reply(ctx, conf), ctx
  end

  local function status(code)
    -- ctx.error has what the client would be told, ctx.upstream what the upstream said
    return { kind = "status", status = 502 }, { upstream = { status = code } }
  end

  for _, kind in ipairs { "connect", "dns", "tls", "timeout", "reset", "protocol" } do
    it("tries another upstream after " .. kind, function()
      local result, ctx = reply { kind = kind, status = 502 }
      assert.equal("retry", result)
      assert.same({ "failover" }, ctx.flags)
    end)
  end

  it("tries another upstream for 401, 429, 500, 503 and 529", function()
    for _, code in ipairs { 401, 429, 500, 503, 529 } do
      assert.equal("retry", (reply(status(code))))
    end
  end)

  it("leaves the client's own mistakes alone", function()
    for _, code in ipairs { 400, 404, 413, 422 } do
      assert.is_nil((reply(status(code))))
    end
  end)

  it("judges an error inside a stream by the status that it means", function()
    assert.equal("retry", (reply { kind = "stream", status = 503 }))
    assert.equal("retry", (reply { kind = "stream", status = 429 }))
    assert.is_nil((reply { kind = "stream", status = 400 }))
  end)

  it("leaves good answers alone", function()
    assert.is_nil((reply(nil, { upstream = { status = 200 } })))
  end)

  it("does not take an earlier attempt's error for this one's", function()
    assert.is_nil((reply({ status = 502 }, { attempt = 2, upstream = { status = 200 } })))
  end)

  it("never retries once something reached the client", function()
    assert.is_nil((reply({ kind = "connect" }, { can_retry = false })))
  end)

  it("stops at max_attempts", function()
    conf = assert(testing.config(plugin, { max_attempts = 2 }))
    assert.equal("retry", (reply({ kind = "connect" }, { attempt = 1 })))
    assert.is_nil((reply({ kind = "connect" }, { attempt = 2 })))
  end)

  it("takes its statuses from the settings", function()
    plugin = testing.load("failover")
    conf = assert(testing.config(plugin, { statuses = { 404 }, server_errors = false }))
    plugin.init(testing.gw(), conf)
    assert.equal("retry", (reply(status(404))))
    assert.is_nil((reply(status(500))))
    assert.is_nil((reply(status(429))))
  end)

  it("refuses settings that make no sense", function()
    for _, bad in ipairs { { max_attempts = 0 }, { max_attempts = "3" }, { statuses = { 99 } },
      { retries = 3 } } do
      local good, problems = testing.config(plugin, bad)
      assert.is_nil(good)
      assert.equal(1, #problems)
    end
  end)
end)

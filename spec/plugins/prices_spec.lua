local testing = require("testing")

local null = testing.json.null
local money = testing.money


describe("prices", function()
  local plugin, gw, calls, answer, failure, cost

  before_each(function()
    plugin = testing.load("prices")
    calls, answer, failure, cost = {}, nil, nil, nil
    local function service(request)
      calls[#calls + 1] = request
      if failure then
        return nil, failure
      end
      return answer
    end
    gw = testing.gw { prices = { list = service, put = service, delete = service,
      cost = function() return cost, 7 end } }
    plugin.init(gw, {})
  end)

  local function call(method, path, request)
    return testing.call(plugin, gw, method, path, request)
  end

  local function row()
    return { version = 7, model = "gpt-x*", input_nano = 2500000000, output_nano = 10000000000,
      cache_read_nano = 1250000000, cache_write_5m_nano = null, cache_write_1h_nano = null,
      reasoning_nano = null, audio_in_nano = null, audio_out_nano = null, image_in_nano = null,
      per_call_nano = null, max_output = null, source = null, valid_from_ms = 1763665200000 }
  end

  describe("the price hook", function()
    it("gives the table's cost", function()
      cost = money.usd("0.25")
      assert.equal(cost, plugin.hooks.price(testing.ctx(), nil, {}))
    end)

    it("leaves the cost as it was when the table has none", function()
      local before = money.usd("1")
      assert.equal(before, plugin.hooks.price(testing.ctx(), before, {}))
      assert.is_nil((plugin.hooks.price(testing.ctx(), nil, {})))
    end)
  end)

  it("lists prices as exact decimals", function()
    answer = { items = { row() } }
    local status, body = call("GET", "/admin/prices")
    assert.equal(200, status)
    local shown = body.prices[1]
    assert.same({ "gpt-x*", "2.5", "10", "1.25" },
      { shown.model, shown.input, shown.output, shown.cache_read })
    assert.equal(null, shown.per_call)
    assert.equal("2025-11-20T19:00:00.000Z", shown.valid_from)
  end)

  it("sets a price under the decoded name of its path, exactly as written", function()
    answer = row()
    local status = call("PUT", "/admin/prices/vendor%2Fgpt-x*", { body = {
      input = "2.500000001", output = 10, cache_read = null, max_output = 8192 } })
    assert.equal(200, status)
    local sent = calls[1]
    assert.equal("vendor/gpt-x*", sent.model)
    assert.equal("2500000001", money.nano_text(sent.input))
    assert.equal("10000000000", money.nano_text(sent.output))
    assert.is_nil(sent.cache_read)
    assert.equal(8192, sent.max_output)
  end)

  it("refuses amounts that are none", function()
    for _, body in ipairs { { input = "x", output = 1 }, { input = -1, output = 1 },
      { input = 1, output = 1, price = 2 }, { input = 1, output = 1, max_output = 0 } } do
      assert.equal(422, (call("PUT", "/admin/prices/m", { body = body })))
    end
    assert.equal(0, #calls)
  end)

  it("passes on what the table refuses", function()
    failure = { code = "invalid_request", message = "input and output, or per_call, are needed" }
    local status, body = call("PUT", "/admin/prices/m", { body = {} })
    assert.equal(400, status)
    assert.equal("invalid_request", body.detail.error)
  end)

  it("takes a price away", function()
    answer = row()
    assert.equal(204, (call("DELETE", "/admin/prices/gpt-x*")))
    assert.equal("gpt-x*", calls[1])
    failure = { code = "not_found", message = "Price not found" }
    local status, body = call("DELETE", "/admin/prices/other")
    assert.equal(404, status)
    assert.equal("No price for model: other", body.detail.message)
  end)

  it("tells a failure of the list", function()
    failure = { code = "busy", message = "…" }
    assert.equal(503, (call("GET", "/admin/prices")))
  end)

  it("is for admins only", function()
    for _, route in ipairs(plugin.routes) do
      assert.equal("admin", route.auth)
    end
    assert.equal(403, (call("GET", "/admin/prices", { principal = false })))
  end)
end)

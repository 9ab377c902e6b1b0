local testing = require("testing")


describe("select_weighted", function()
  local plugin, candidates, all, inactive, list_error, random

  before_each(function()
    plugin = testing.load("select_weighted")
    candidates, all, inactive, list_error = {}, {}, {}, nil
    random = { 0.5 }
  end)

  local function select(given)
    plugin.init(testing.gw {
      random = random,
      upstreams = {
        candidates = function() return candidates end,
        all = function() return all end,
        list = function(query)
          if list_error then
            return nil, list_error
          end
          local first = (query.page - 1) * query.page_size + 1
          local last = math.min(#inactive, first + query.page_size - 1)
          return { items = { unpack(inactive, first, last) }, total = #inactive }
        end,
      },
    }, {})
    local ctx = testing.ctx(given)
    return plugin.hooks.select(ctx, {}), ctx.done
  end

  local function view(id, given)
    local made = { id = id, name = "up" .. id, weight = 50, priority = 0, native = true,
      usable = true, is_default = false, allowed = true }
    for name, value in pairs(given or {}) do
      made[name] = value
    end
    return made
  end

  describe("without a name", function()
    it("takes the only candidate", function()
      candidates = { view(1) }
      assert.same({ 1 }, (select()))
    end)

    it("puts native before converted, then the higher priority", function()
      candidates = { view(1, { native = false, priority = 9 }), view(2, { priority = 1 }),
        view(3, { priority = 2 }) }
      assert.same({ 3, 2, 1 }, (select()))
    end)

    it("puts those that cool down last, but keeps them", function()
      candidates = { view(1, { usable = false, priority = 9, is_default = true }),
        view(2, { native = false }), view(3) }
      assert.same({ 3, 2, 1 }, (select()))
    end)

    it("keeps the order of draws among weights", function()
      candidates = { view(1, { weight = 1 }), view(2, { weight = 99 }) }
      random = { 0.5, 0.5 }
      assert.same({ 2, 1 }, (select()))
      random = { 0.9999, 0.0001 }
      assert.same({ 1, 2 }, (select()))
    end)

    it("draws in proportion to the weights", function()
      candidates = { view(1, { weight = 10 }), view(2, { weight = 30 }) }
      local firsts = { 0, 0 }
      local seed = 42
      for _ = 1, 4000 do
        random = {}
        for i = 1, 2 do
          seed = (seed * 1103515245 + 12345) % 2147483648
          random[i] = math.floor(seed / 65536) / 32768
        end
        local order = select()
        firsts[order[1]] = firsts[order[1]] + 1
      end
      assert.is_true(firsts[1] > 900 and firsts[1] < 1100, "first " .. firsts[1])
    end)

    it("puts the default first among equals whatever is drawn", function()
      candidates = { view(1), view(2, { is_default = true }), view(3) }
      for _, draws in ipairs { { 0.9, 0.1, 0.5 }, { 0.1, 0.9, 0.5 }, { 0.5, 0.1, 0.9 } } do
        random = draws
        assert.equal(2, select()[1])
      end
    end)

    it("does not put the default before a heavier or a preferred one", function()
      candidates = { view(1, { weight = 100 }), view(2, { is_default = true }) }
      random = { 0.9, 0.1 }
      assert.same({ 1, 2 }, (select()))
      candidates = { view(1, { priority = 1 }), view(2, { is_default = true }) }
      assert.same({ 1, 2 }, (select()))
    end)

    it("leaves further attempts to the first order", function()
      candidates = { view(1), view(2) }
      assert.is_nil((select { attempt = 2 }))
    end)

    it("leaves it to the core when nothing serves the model", function()
      all = { view(1) }
      local result, done = select()
      assert.is_nil(result)
      assert.is_nil(done.deny)
    end)

    it("says 503 when all upstreams of the key are gone", function()
      all = { view(1) }
      local _, done = select { key = { id = 1, upstream_ids = { 8, 9 } } }
      assert.equal(503, done.deny.status)
      _, done = select { key = { id = 1, upstream_ids = { 1, 9 } } }
      assert.is_nil(done.deny)
    end)
  end)

  describe("with X-Upstream-Name", function()
    local function named(name, given)
      given = given or {}
      given.headers = { ["x-upstream-name"] = name }
      return select(given)
    end

    it("takes that one", function()
      candidates = { view(1), view(2) }
      all = candidates
      assert.same({ 2 }, (named("up2")))
    end)

    it("refuses an unknown name and lists those the key may use", function()
      all = { view(2), view(1), view(3) }
      local _, done = named("nope", { key = { id = 1, upstream_ids = { 1, 2 } } })
      assert.equal(400, done.deny.status)
      assert.equal("upstream_not_found", done.deny.code)
      assert.equal("Upstream 'nope' does not exist. Available upstreams: up1, up2",
        done.deny.message)
    end)

    it("refuses one that the key may not use", function()
      all = { view(1), view(2) }
      candidates = { view(1) }
      local _, done = named("up2", { key = { id = 1, upstream_ids = { 1 } } })
      assert.equal(403, done.deny.status)
      assert.equal("API key not authorized for upstream: up2", done.deny.message)
    end)

    it("says 503 for one that is switched off, wherever it stands in the list", function()
      for id = 1, 250 do
        inactive[id] = { name = "old" .. id }
      end
      local _, done = named("old240")
      assert.equal(503, done.deny.status)
      assert.equal("Upstream old240 is not available", done.deny.message)
    end)

    it("says 400 when the list of upstreams cannot be read", function()
      list_error = { code = "busy", message = "the database is busy" }
      local _, done = named("old1")
      assert.equal(400, done.deny.status)
    end)

    it("says 404 when it does not serve the model", function()
      all = { view(1) }
      local _, done = named("up1")
      assert.equal(404, done.deny.status)
      assert.equal("model_not_found", done.deny.code)
    end)

    it("leaves counting tokens to the core's estimate", function()
      all = { view(1) }
      local result, done = named("up1", { op = "count_tokens" })
      assert.is_nil(result)
      assert.is_nil(done.deny)
    end)
  end)
end)

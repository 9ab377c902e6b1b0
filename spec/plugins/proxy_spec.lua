local testing = require("testing")


describe("proxy", function()
  local plugin, gw, key

  before_each(function()
    plugin = testing.load("proxy")
    key = { id = 1, upstream_ids = { 2 } }
    gw = testing.gw {
      keys = { find = function(credential) return credential == "good" and key or nil end },
      upstreams = {
        all = function()
          return { { id = 1, name = "a", provider = "openai", is_default = true, base_url = "x" },
            { id = 2, name = "b", provider = "anthropic", is_default = false } }
        end,
      },
    }
    plugin.init(gw, {})
  end)

  local function get(credential, path)
    return testing.call(plugin, gw, "GET", path or "/proxy/v1/upstreams",
      { credential = credential })
  end

  it("lists what the key may use, without addresses", function()
    local status, body = get("good")
    assert.equal(200, status)
    assert.same({ upstreams = { { name = "b", provider = "anthropic", is_default = false } } },
      body)
  end)

  it("lists all for a key without a list, with real booleans", function()
    key.upstream_ids = nil
    local _, body = get("good", "/v1/upstreams")
    assert.equal(2, #body.upstreams)
    assert.is_true(body.upstreams[1].is_default)
  end)

  it("gives an empty list, not an object", function()
    key.upstream_ids = {}
    local _, body = get("good")
    assert.is_true(testing.json.is_array(body.upstreams))
  end)

  it("refuses callers in the detail envelope", function()
    local status, body = get(nil)
    assert.equal(401, status)
    assert.same({ detail = { error = "missing_api_key",
      message = "Authorization header required" } }, body)
    status, body = get("bad")
    assert.equal(401, status)
    assert.same({ detail = { error = "invalid_api_key",
      message = "API key not found or inactive" } }, body)
  end)
end)

local testing = require("testing")


describe("metrics", function()
  local plugin, gw

  before_each(function()
    plugin = testing.load("metrics")
    gw = testing.gw { process = { metrics = function() return "moongate_up 1\n" end } }
    plugin.init(gw, {})
  end)

  local function get(request)
    return testing.call(plugin, gw, "GET", "/metrics", request)
  end

  it("shows the text to programs on this machine", function()
    for _, address in ipairs { "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1" } do
      local status, body, headers = get { client_ip = address }
      assert.equal(200, status)
      assert.equal("moongate_up 1\n", body)
      assert.equal("text/plain; version=0.0.4; charset=utf-8", headers["content-type"])
    end
  end)

  it("refuses others without a credential", function()
    assert.equal(401, (get { client_ip = "192.0.2.1" }))
    assert.equal(401, (get { client_ip = "1.127.0.0" }))
  end)

  it("does not trust a local proxy that speaks for somebody else", function()
    for _, name in ipairs { "x-forwarded-for", "forwarded", "x-real-ip" } do
      assert.equal(401, (get { headers = { [name] = "192.0.2.1" } }))
    end
  end)

  it("takes the admin token", function()
    assert.equal(200, (get { client_ip = "192.0.2.1", is_admin = true }))
    assert.equal(200, (get { headers = { forwarded = "for=x" }, is_admin = true }))
  end)

  it("refuses another token", function()
    local status, body = get { client_ip = "192.0.2.1", credential = "wrong", is_admin = false }
    assert.equal(401, status)
    assert.equal("unauthorized", body.error.code)
  end)
end)

-- The library modules that plugins share, loaded as a plugin loads them.
local testing = require("testing")

local sandbox = testing.sandbox("spec")
local iso_time = sandbox.require("iso_time")
local paginate = sandbox.require("paginate")
local row_view = sandbox.require("row_view")
local null = testing.json.null


describe("iso_time", function()
  it("reads times with and without zone, fraction and seconds", function()
    local cases = {
      ["1970-01-01"] = 0,
      ["1970-01-01T00:00:00Z"] = 0,
      ["1969-12-31T23:59:59Z"] = -1000,
      ["2000-02-29T12:00Z"] = 951825600000,
      ["2025-11-20T19:00:00Z"] = 1763665200000,
      ["2025-11-20T19:00:00.5Z"] = 1763665200500,
      ["2025-11-20 19:00:00.123456"] = 1763665200123,
      ["2025-11-20T20:00:00+01:00"] = 1763665200000,
      ["2025-11-20T20:00:00 01:00"] = 1763665200000, -- a plus, decoded in a query
      ["2025-11-20T14:00:00-0500"] = 1763665200000,
      ["2025-11-20t19:00:00z"] = 1763665200000,
      ["9999-12-31T23:59:59.999Z"] = 253402300799999,
    }
    for text, ms in pairs(cases) do
      assert.equal(ms, iso_time.parse(text), text)
    end
  end)

  it("refuses what is no time", function()
    for _, text in ipairs { "", "yesterday", "2025-13-01", "2025-02-29", "2025-1-1",
      "2025-11-20T", "2025-11-20T25:00", "2025-11-20T10:60", "2025-11-20T10:00:60",
      "2025-11-20T10:00:00.", "2025-11-20T10:00:00X", "2025-11-20T10:00:00+25:00",
      "2025-11-20T10:00:00Z;", "2025-11-20T10", ("2"):rep(100) } do
      assert.is_nil(iso_time.parse(text), text)
    end
    assert.is_nil(iso_time.parse(5))
  end)

  it("writes what it reads", function()
    for _, text in ipairs { "1970-01-01T00:00:00.000Z", "2025-11-20T19:00:00.007Z",
      "2024-02-29T23:59:59.999Z" } do
      assert.equal(text, iso_time.format(iso_time.parse(text)))
    end
  end)
end)


describe("paginate", function()
  it("counts pages", function()
    for total, pages in pairs { [0] = 1, [1] = 1, [20] = 1, [21] = 2, [40] = 2 } do
      local page = paginate.answer({ items = {}, total = total }, { page = 1, page_size = 20 })
      assert.equal(pages, page.total_pages)
    end
  end)

  it("has defaults and limits", function()
    local query = paginate.query()
    assert.same({ page = 1, page_size = 20 }, testing.check(query, {}))
    assert.is_nil((testing.check(query, { page_size = 101 })))
    assert.is_nil((testing.check(query, { page = 0 })))
  end)
end)


describe("row_view", function()
  it("tells null from absent", function()
    assert.equal(null, row_view.or_null(nil))
    assert.is_false(row_view.or_null(false))
    assert.is_nil(row_view.or_nil(null))
    assert.equal(null, row_view.time(null))
    assert.same({ a = 1, c = false }, row_view.without_nulls { a = 1, b = null, c = false })
  end)
end)


describe("testing.load", function()
  it("gives plugins no globals but those of the sandbox", function()
    for _, name in ipairs { "io", "debug", "package", "coroutine", "setfenv", "dofile" } do
      assert.has_error(function() return sandbox[name] end)
    end
    assert.has_error(function() sandbox.leak = 1 end)
  end)
end)

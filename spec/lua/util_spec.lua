local strict = require("strict")
local util = require("util")

describe("util", function()
  it("finds a value in a list", function()
    assert.is_true(util.contains({ 1, 2 }, 2))
    assert.is_false(util.contains({ 1, 2 }, 3))
    assert.is_false(util.contains(nil, 3))
  end)

  it("maps and filters", function()
    assert.same({ 2, 4 }, util.map({ 1, 2 }, function(value) return value * 2 end))
    assert.same({ 2 }, util.filter({ 1, 2 }, function(value) return value > 1 end))
  end)

  it("sorts the names of fields", function()
    assert.same({ "a", "b", "c" }, util.sorted_keys { b = 1, c = 2, a = 3 })
  end)

  it("merges without changing what it was given", function()
    local base = { a = 1, b = 2 }
    assert.same({ a = 1, b = 3, c = 4 }, util.merge(base, { b = 3, c = 4 }))
    assert.same({ a = 1, b = 2 }, base)
  end)

  it("splits at a plain separator and drops empty pieces", function()
    assert.same({ "a", "b.c", "d" }, util.split(" a, b.c ,,d,", ","))
    assert.same({ "a", "b" }, util.split("a.b", "."))
    assert.same({}, util.split("", ","))
  end)
end)

describe("strict", function()
  it("refuses undeclared names", function()
    local environment = strict.environment(_G, { gw = 1 })
    assert.equal(1, environment.gw)
    assert.has_error(function() return environment.nonsense end, "undeclared global 'nonsense'")
    assert.has_error(function() environment.nonsense = 1 end,
      "assignment to undeclared global 'nonsense'")
  end)

  it("leaves the base as it was", function()
    strict.environment(_G, { something_new = 1 })
    assert.is_nil(rawget(_G, "something_new"))
  end)
end)

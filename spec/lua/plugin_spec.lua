-- The contract of plugin tables, without the host.
local contract = require("plugin")
local schema = require("schema")


describe("plugin.check", function()
  local function problems(given, expected)
    local _, list = contract.check(given, expected or "one")
    local texts = {}
    for _, problem in ipairs(list) do
      texts[#texts + 1] = problem.what
    end
    return texts
  end

  local function with(fields)
    fields.name, fields.api = "one", 1
    return fields
  end

  it("fills in what is not said", function()
    local out, list = contract.check({ name = "one", api = 1 }, "one")
    assert.same({}, list)
    assert.equal("deny", out.on_error)
    assert.same({}, out.hooks)
    assert.same({}, out.routes)
    assert.same({}, out.tasks)
    assert.same({}, out.needs.secrets)
  end)

  it("names positional route fields and makes a record of path parameters", function()
    local function handler() end
    local out, list = contract.check(with {
      routes = { { "GET", "/a/{uid}/b/{id}", handler, auth = "key",
        params = { uid = schema.uuid {} } } },
    }, "one")
    assert.same({}, list)
    local route = out.routes[1]
    assert.equal("GET", route.method)
    assert.equal(handler, route.handler)
    assert.equal("uuid", route.params.fields.uid.__schema)
    assert.equal("text", route.params.fields.id.__schema)
  end)

  it("collects all problems", function()
    local texts = problems({
      name = "two", hoks = {}, on_error = "ignore", routes = { { "GET", "/x", print } },
    })
    assert.equal(5, #texts)
  end)

  it("suggests the nearest name", function()
    assert.equal("hooks", contract.suggest("hoks", { hooks = true, routes = true }))
    assert.is_nil(contract.suggest("zzzzzz", { hooks = true, routes = true }))
  end)

  it("refuses a path that cannot be matched", function()
    assert.same({ "a", "b" }, contract.path_parameters("/x/{a}/y/{b}"))
    assert.same({}, contract.path_parameters("/"))
    for _, path in ipairs { "x", "/x/", "/x//y", "/{a}/{a}", "/x y", "/x{a}", "/{A}" } do
      local names, why = contract.path_parameters(path)
      assert.is_nil(names)
      assert.is_string(why)
    end
  end)

  it("refuses something that is no table", function()
    local out, list = contract.check(nil, "one")
    assert.is_nil(out)
    assert.equal(1, #list)
  end)

  it("turns a daily time into minutes", function()
    local out, list = contract.check(with {
      tasks = { { name = "night", daily = "02:30", run = function() end } },
    }, "one")
    assert.same({}, list)
    assert.equal(150, out.tasks[1].daily_minute)
    assert.equal("process", out.tasks[1].on)
  end)

  it("refuses tasks, metrics and models that are there twice or malformed", function()
    local function run() end
    assert.same({ "task t is there twice" }, problems(with {
      tasks = { { name = "t", every = 1, run = run }, { name = "t", every = 1, run = run } },
    }))
    assert.equal(1, #problems(with { metrics = { { name = "x", kind = "sum" } } }))
    assert.equal(1, #problems(with { models = { {} } }))
    assert.equal(1, #problems(with { tasks = { a = 1 } }))
  end)
end)


describe("api", function()
  local api = require("api")
  local docs = require("docs")

  it("names every field of a plugin table that the contract takes", function()
    local text = docs.markdown()
    for _, name in ipairs { "name", "version", "api", "config", "needs", "on_error", "init",
      "close", "hooks", "wants", "routes", "render_error", "tasks", "migrations", "quirks",
      "metrics", "models", "console" } do
      assert.is_truthy(text:find("| `" .. name .. "` |", 1, true), name)
    end
  end)

  it("has each entry once and complete", function()
    for section, entries in pairs(api) do
      local seen = {}
      for _, entry in ipairs(entries) do
        assert.is_nil(seen[entry[1]], section .. "." .. entry[1])
        seen[entry[1]] = true
        assert.equal(3, #entry, section .. "." .. entry[1])
      end
    end
  end)

  it("documents every kind of schema", function()
    for _, entry in ipairs(api.schema) do
      assert.is_function(schema[entry[1]])
    end
    local documented = {}
    for _, entry in ipairs(api.schema) do
      documented[entry[1]] = true
    end
    for name in pairs(schema) do
      assert.is_truthy(documented[name] or name == "is", name)
    end
  end)
end)

local testing = require("testing")


describe("demo", function()
  local plugin, gw, conf, candidates

  before_each(function()
    plugin = testing.load("demo")
    candidates = {}
    gw = testing.gw { upstreams = { candidates = function() return candidates end } }
    conf = assert(testing.config(plugin, {}))
    plugin.init(gw, conf)
  end)

  local function ask(given)
    given.model = given.model or "demo"
    local ctx = testing.ctx(given)
    local result = plugin.hooks.select(ctx, conf)
    assert.is_nil(result)
    return ctx.done.run and ctx.done.run(), ctx
  end

  local function text_of(events)
    local parts = {}
    for _, event in ipairs(events) do
      if event.kind == "text" then
        parts[#parts + 1] = event.text
      end
    end
    return table.concat(parts), #parts
  end

  local function user(content)
    return { role = "user", content = content }
  end

  it("is listed as a model", function()
    assert.same({ { id = "demo", owned_by = "moongate" } }, plugin.models)
  end)

  it("repeats the last user message of a chat word by word", function()
    local events, ctx = ask { request = { messages = {
      user("first"), { role = "assistant", content = "x" }, user("Guten  Tag,\nWelt"),
      { role = "assistant", content = "y" },
    } } }
    local text, count = text_of(events)
    assert.equal("Guten  Tag,\nWelt", text)
    assert.equal(3, count)
    assert.same({ kind = "usage", input = 4, output = 3 }, events[4])
    assert.same({ kind = "finish", reason = "stop" }, events[5])
    assert.same({ "estimated" }, ctx.flags)
  end)

  it("reads every shape in which a question comes", function()
    local parts = { { type = "text", text = "one" }, { type = "image" }, { type = "text",
      text = "two" } }
    local cases = {
      { op = "chat", request = { messages = { user(parts) } }, text = "one\ntwo" },
      { op = "messages", request = { messages = { user("hi") } }, text = "hi" },
      { op = "completions", request = { prompt = "hi" }, text = "hi" },
      { op = "completions", request = { prompt = { "a", "b" } }, text = "b" },
      { op = "responses", request = { input = "hi" }, text = "hi" },
      { op = "responses", request = { input = { { type = "reasoning" }, { role = "user",
        content = { { type = "input_text", text = "hi" } } } } }, text = "hi" },
    }
    for _, case in ipairs(cases) do
      assert.equal(case.text, (text_of((ask { op = case.op, request = case.request }))))
    end
  end)

  it("greets when there is nothing to repeat", function()
    local null = testing.json.null
    for _, request in ipairs { {}, { messages = {} }, { messages = { user("  ") } },
      { messages = null }, { messages = { null, user(null) } },
      { messages = { user { null } } } } do
      assert.is_truthy((text_of((ask { request = request }))):find("^Hello from the demo"))
    end
    assert.is_truthy((text_of((ask {}))):find("^Hello"))
  end)

  it("waits between the words of a stream only", function()
    ask { request = { stream = true, messages = { user("a b c") } } }
    assert.same({ 0.02, 0.02 }, gw.slept)
    ask { request = { stream = false, messages = { user("a b c") } } }
    assert.equal(2, #gw.slept)
  end)

  it("ends at the caller's limit", function()
    local events = ask { max_output = 2, request = { messages = { user("a b c") } } }
    assert.equal("a b", (text_of(events)))
    assert.same({ kind = "finish", reason = "length" }, events[#events])
    events = ask { max_output = 3, request = { messages = { user("a b c") } } }
    assert.same({ kind = "finish", reason = "stop" }, events[#events])
  end)

  it("ends at its own limit", function()
    conf = assert(testing.config(plugin, { max_words = 1 }))
    local events = ask { max_output = 100, request = { messages = { user("a b c") } } }
    assert.equal("a", (text_of(events)))
  end)

  it("ends the answer when a wait is cancelled", function()
    gw.sleep = function() error("cancelled") end
    local ctx = testing.ctx { model = "demo", request = { stream = true,
      messages = { user("a b") } } }
    plugin.hooks.select(ctx, conf)
    assert.has_error(ctx.done.run)
    assert.equal(1, #ctx.done.events)
  end)

  it("refuses calls that it cannot answer", function()
    local _, ctx = ask { op = "embeddings" }
    assert.equal(400, ctx.done.deny.status)
    _, ctx = ask { op = "other" }
    assert.equal(400, ctx.done.deny.status)
  end)

  it("leaves other models, counting and named upstreams to others", function()
    local function is_left(given)
      local events, ctx = ask(given)
      assert.is_nil(events)
      assert.is_nil(ctx.done.deny)
    end
    is_left { model = "demo-2" }
    is_left { op = "count_tokens" }
    candidates = { { id = 1 } }
    is_left { request = { messages = { user("a") } } }
  end)

  it("checks its settings", function()
    assert.same({ delay = 0.02, max_words = 2000 }, testing.config(plugin, {}))
    assert.is_nil((testing.config(plugin, { delay = -1 })))
    assert.is_nil((testing.config(plugin, { max_words = 0 })))
  end)
end)

-- The constructors under plain LuaJIT; what C makes of their tables is in test_plugin.c.
local schema = require("schema")


describe("schema", function()
  -- The message with its place, as the plugin's author sees it.
  local function refusal(code)
    local chunk = assert(loadstring(code, "@plugins/x/init.lua"))
    setfenv(chunk, { schema = schema })
    local ok, why = pcall(chunk)
    assert.is_false(ok)
    return why
  end

  it("gives plain tables with the kind and the place", function()
    local code = "\nlocal made = schema.text { max = 5 }\nreturn made"
    local chunk = assert(loadstring(code, "@plugins/x/init.lua"))
    local made = setfenv(chunk, { schema = schema })()
    assert.equal("text", made.__schema)
    assert.equal(5, made.max)
    assert.is_truthy(made.at:find("plugins/x/init.lua:2", 1, true))
    assert.is_nil(getmetatable(made))
  end)

  it("knows its own", function()
    assert.is_true(schema.is(schema.uuid()))
    assert.is_false(schema.is({}))
    assert.is_false(schema.is("text"))
  end)

  it("takes fields of a record beside its options or under fields", function()
    local made = schema.record {
      limit = schema.integer {}, about = "settings", optional = true,
      fields = { default = schema.text {} },
    }
    assert.equal("settings", made.about)
    assert.is_true(made.optional)
    assert.equal("integer", made.fields.limit.__schema)
    assert.equal("text", made.fields.default.__schema)
    -- A field may be called like an option.
    assert.equal("text", schema.record { about = schema.text {} }.fields.about.__schema)
  end)

  it("makes a nullable copy", function()
    local text = schema.text { max = 3 }
    local made = schema.null_or(text)
    assert.is_true(made.nullable)
    assert.equal(3, made.max)
    assert.is_nil(text.nullable)
  end)

  it("refuses unknown options at the plugin's line", function()
    assert.equal("plugins/x/init.lua:2: schema.integer: unknown option 'mim'",
      refusal("\nlocal _ = schema.integer { mim = 1 }"))
  end)

  it("refuses options of a wrong type", function()
    assert.equal("plugins/x/init.lua:1: schema.integer: min must be a number",
      refusal("local _ = schema.integer { min = '1' }"))
    assert.equal("plugins/x/init.lua:1: schema.decimal: min must be a number or a decimal text",
      refusal("local _ = schema.decimal { min = {} }"))
    assert.equal("plugins/x/init.lua:1: schema.text takes a table of options",
      refusal("local _ = schema.text(5)"))
    assert.equal("plugins/x/init.lua:1: schema.text: enum is empty",
      refusal("local _ = schema.text { enum = {} }"))
    assert.equal("plugins/x/init.lua:1: schema.list needs of = a schema",
      refusal("local _ = schema.list {}"))
    assert.equal("plugins/x/init.lua:1: schema.list: of must be a schema",
      refusal("local _ = schema.list { of = {} }"))
  end)

  it("refuses a record with something that is no schema", function()
    assert.equal("plugins/x/init.lua:3: schema.record: b is no schema",
      refusal("\n\nlocal _ = schema.record { b = 5 }"))
    assert.equal("plugins/x/init.lua:1: schema.null_or takes a schema",
      refusal("local _ = schema.null_or({})"))
  end)
end)

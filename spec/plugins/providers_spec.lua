local testing = require("testing")

-- What core/script/plugin_quirk.c takes.
local FIELDS = {
  formats = true, auth = true, headers = true, set_headers = true, forward = true,
  drop_headers = true, fields = true, paths = true, query = true, stream_usage = true,
  usage = true,
}
local CREDENTIALS = { "authorization", "x-api-key", "api-key", "cookie" }


describe("providers", function()
  local quirks = {}
  for _, name in ipairs { "provider_openai", "provider_anthropic", "provider_generic" } do
    for provider, quirk in pairs(testing.load(name).quirks) do
      assert(not quirks[provider], provider .. " is there twice")
      quirks[provider] = quirk
    end
  end

  it("know every provider that the documentation names", function()
    for _, name in ipairs { "openai", "anthropic", "azure", "deepseek", "openrouter", "groq",
      "mistral", "ollama", "vllm", "generic" } do
      assert.is_table(quirks[name], name)
    end
  end)

  it("use known fields only and say how to authenticate", function()
    for provider, quirk in pairs(quirks) do
      for field in pairs(quirk) do
        assert.is_true(FIELDS[field] == true, provider .. "." .. field)
      end
      assert.is_string(quirk.auth.header)
      assert.is_string(quirk.auth.prefix)
      assert.is_true(#quirk.formats > 0)
    end
  end)

  it("forward no credential of the client", function()
    for provider, quirk in pairs(quirks) do
      for _, header in ipairs(quirk.forward or {}) do
        for _, credential in ipairs(CREDENTIALS) do
          assert.are_not.equal(credential, header, provider)
        end
      end
    end
  end)

  it("speak their own dialects", function()
    assert.same({ "openai", "responses" }, quirks.openai.formats)
    assert.same({ "claude" }, quirks.anthropic.formats)
    assert.same({ header = "x-api-key", prefix = "" }, quirks.anthropic.auth)
    assert.equal("2023-06-01", quirks.anthropic.headers["anthropic-version"])
    assert.same({ header = "api-key", prefix = "" }, quirks.azure.auth)
  end)

  it("do not ask for the usage of a stream where it comes unasked", function()
    for _, name in ipairs { "deepseek", "groq", "mistral" } do
      assert.equal("always_sent", quirks[name].stream_usage)
    end
    for _, name in ipairs { "openai", "generic", "ollama", "openrouter", "vllm", "azure" } do
      assert.equal("inject", quirks[name].stream_usage)
    end
  end)
end)

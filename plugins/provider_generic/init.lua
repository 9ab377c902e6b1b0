--- Upstreams that speak the OpenAI format. Data only: the core compiles it. "generic" also stands
-- in for providers that no plugin knows.
local BEARER = { header = "authorization", prefix = "Bearer " }
local FOREIGN_HEADERS = {
  "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access",
}


-- stream_usage: "inject" asks for a stream's usage; "always_sent": it comes unasked.
local function openai_like(stream_usage)
  return {
    formats = { "openai" },
    auth = BEARER,
    drop_headers = FOREIGN_HEADERS,
    stream_usage = stream_usage,
  }
end


return {
  name = "provider_generic",
  version = "1.0.0",
  api = 1,
  about = "Upstreams of any provider that speaks the OpenAI format, with the little that differs.",

  quirks = {
    -- No header is dropped: an upstream of this kind may be set to formats = { "claude" }.
    generic = { formats = { "openai" }, auth = BEARER, stream_usage = "inject" },
    azure = {
      formats = { "openai" },
      auth = { header = "api-key", prefix = "" },
      drop_headers = FOREIGN_HEADERS,
      stream_usage = "inject",
    },
    deepseek = openai_like("always_sent"),
    groq = openai_like("always_sent"), -- in x_groq.usage
    mistral = openai_like("always_sent"),
    ollama = openai_like("inject"),
    openrouter = openai_like("inject"),
    vllm = openai_like("inject"),
  },
}

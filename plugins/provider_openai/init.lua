--- OpenAI's own API. Data only: the core compiles it.
return {
  name = "provider_openai",
  version = "1.0.0",
  api = 1,
  about = "Upstreams with provider = \"openai\": api.openai.com and gateways like it.",

  quirks = {
    openai = {
      formats = { "openai", "responses" },
      auth = { header = "authorization", prefix = "Bearer " },
      -- What Codex and the SDKs send so that calls of one conversation meet the same prompt cache.
      forward = {
        "openai-beta", "session-id", "session_id", "conversation_id", "thread-id", "originator",
      },
      drop_headers = {
        "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access",
      },
      stream_usage = "inject",
    },
  },
}

--- Anthropic's own API. Data only: the core compiles it.
return {
  name = "provider_anthropic",
  version = "1.0.0",
  api = 1,
  about = "Upstreams with provider = \"anthropic\": api.anthropic.com and gateways like it.",

  quirks = {
    anthropic = {
      formats = { "claude" },
      auth = { header = "x-api-key", prefix = "" },
      headers = { ["anthropic-version"] = "2023-06-01" },
      -- Betas and body fields belong together: one without the other is a 400. The rest is what
      -- Claude Code sends to tell its sessions apart.
      forward = { "anthropic-version", "anthropic-beta", "x-app", "x-claude-code-session-id" },
      drop_headers = { "openai-beta" },
    },
  },
}

--- The built-in model "demo": says the last user message again, word by word. It needs no upstream
-- and no key of a provider, so a new gateway can be tried at once.
local gw

local MODEL = "demo"
local GREETING = "Hello from the demo model. Say something and it comes back word by word."
local ANSWERS = { chat = true, completions = true, responses = true, messages = true }


-- ---- the question

-- The texts of a content that is a string or a list of parts.
local function content_text(content)
  if type(content) == "string" then
    return content
  elseif type(content) ~= "table" then
    return nil
  end
  local texts = {}
  for _, part in ipairs(content) do
    if type(part) == "table" and type(part.text) == "string" then
      texts[#texts + 1] = part.text
    end
  end
  return #texts > 0 and table.concat(texts, "\n") or nil
end


local function last_user_text(messages)
  for i = #messages, 1, -1 do
    local message = messages[i]
    local text = type(message) == "table" and message.role == "user"
      and content_text(message.content)
    if text then
      return text
    end
  end
  return nil
end


-- `prompt` of completions and `input` of responses may be one text.
local function text_or_list(value, from_list)
  if type(value) == "string" then
    return value
  end
  return type(value) == "table" and from_list(value) or nil
end


local function last_text(list)
  local last = list[#list]
  return type(last) == "string" and last or nil
end


local function question_of(op, request)
  local text
  if op == "completions" then
    text = text_or_list(request.prompt, last_text)
  elseif op == "responses" then
    text = text_or_list(request.input, last_user_text)
  else
    text = text_or_list(request.messages, last_user_text)
  end
  return text and text:find("%S") and text or GREETING
end


-- ---- the answer

local function emit_words(emit, text, limit, delay)
  local count = 0
  for word in text:gmatch("%s*%S+") do
    if count == limit then
      return count, "length"
    elseif count > 0 and delay > 0 then
      gw.sleep(delay)
    end
    emit { kind = "text", text = word }
    count = count + 1
  end
  return count, "stop"
end


local function answer(ctx, conf)
  local request = ctx:json()
  request = type(request) == "table" and request or {}
  local text = question_of(ctx.op, request)
  local limit = math.min(ctx.max_output or conf.max_words, conf.max_words)
  local delay = request.stream == true and conf.delay or 0 -- nobody watches a whole answer grow
  local input = math.ceil(#text / 4)
  ctx:flag("estimated")
  return ctx:stream(function(emit)
    local output, reason = emit_words(emit, text, limit, delay)
    emit { kind = "usage", input = input, output = output }
    emit { kind = "finish", reason = reason }
  end)
end


local function answer_demo(ctx, conf)
  if ctx.model ~= MODEL or ctx.attempt > 1 or #gw.upstreams.candidates(ctx) > 0 then
    return nil -- an upstream that names the model itself goes before
  elseif ANSWERS[ctx.op] then
    return answer(ctx, conf)
  elseif ctx.op ~= "count_tokens" then -- that one the core estimates
    ctx:deny(400, "unsupported_operation", "The model 'demo' only answers chat and text calls.")
  end
  return nil
end


return {
  name = "demo",
  version = "1.0.0",
  api = 1,
  about = "Serves the built-in model \"demo\", which repeats the last user message word by word.",
  before = { "select_weighted" },
  needs = { upstreams = "read" },
  on_error = "deny",
  models = { { id = MODEL, owned_by = "moongate" } },

  config = schema.record {
    delay = schema.number { default = 0.02, min = 0, max = 10,
      about = "seconds between two words of a stream" },
    max_words = schema.integer { default = 2000, min = 1, max = 100000,
      about = "words after which an answer ends, whatever the caller allows" },
  },

  init = function(the_gw)
    gw = the_gw
  end,

  hooks = { select = answer_demo },
}

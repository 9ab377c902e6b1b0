// Plugins that misbehave harm only their own exchange; reload is all or nothing; a plugin may answer.
import { after, before, beforeEach, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { events, json, sleep, until } from './kit/http.mjs';
import { shippedPlugins, startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

// The model's name says what the plugin shall do: each test breaks one call and looks at the others.
const rogue = `
local kept = {}

local function misbehave(what)
  if what == "bad-loop" then
    while true do end
  elseif what == "bad-pcall" then
    while true do pcall(function() while true do end end) end
  elseif what == "bad-error" then
    error("broken on purpose")
  elseif what == "bad-field" then
    return (nil).field
  elseif what == "bad-object" then
    error({ a = 1 })
  elseif what == "bad-memory" then
    local hog = {}
    for i = 1, 1e9 do hog[i] = string.rep("x", 1000) .. i end
  elseif what == "bad-string" then
    local s = "x"
    for _ = 1, 60 do s = s .. s end
  elseif what == "bad-pattern" then
    return string.find(string.rep("a", 30000), string.rep("a?", 30000) .. "b")
  elseif what == "bad-recursion" then
    local function again(n) return 1 + again(n + 1) end
    return again(1)
  end
end

return {
  name = "rogue", version = "1.0.0", api = 1, about = "Misbehaves on request.", on_error = "deny",
  hooks = {
    admit = function(ctx)
      misbehave(ctx.model)
      if ctx.model == "bad-return" then return 42 end
      if ctx.model == "bad-deny" then ctx:deny(451, "not_here", "Not in this country.") end
    end,
    select = function(ctx)
      if ctx.model == "bad-select" then return { "no such id", 7, {} } end
      if ctx.model == "answer-whole" then return ctx:respond { status = 200, json = { hello = ctx.key.name } } end
      if ctx.model == "answer-stream" then
        return ctx:stream(function(emit)
          for _, word in ipairs { "one ", "two ", "three" } do
            emit { kind = "text", text = word }
            ctx.gw.sleep(0.02)
          end
          emit { kind = "usage", input = 3, output = 4 }
          emit { kind = "finish", reason = "stop" }
        end)
      end
      if ctx.model == "answer-broken" then
        return ctx:stream(function(emit)
          emit { kind = "text", text = "one " }
          error("broken in the stream")
        end)
      end
    end,
    delta = function(ctx, _, text)
      if ctx.model == "gpt-delta-error" then error("delta broke") end
      if ctx.model == "gpt-delta-loop" then while true do end end
      if ctx.model == "gpt-shout" then return text:upper() end
    end,
    finish = function(ctx)
      if ctx.model == "gpt-finish-error" then error("finish broke") end
      if ctx.model == "gpt-finish-loop" then while true do end end
    end,
  },
  wants = { "text" },
  routes = {
    { "GET", "/rogue/loop", function() while true do end end, auth = "none", about = "Never ends." },
    { "GET", "/rogue/error", function() error("route broke") end, auth = "none", about = "Raises." },
    { "GET", "/rogue/return", function() return "nonsense" end, auth = "none", about = "Returns nonsense." },
  },
}
`;

const versioned = (version, extra = '') => `
return {
  name = "versioned", version = "1.0.0", api = 1, about = "Tells its version.",
  routes = { { "GET", "/versioned", function() return 200, { version = ${version} } end, auth = "none", about = "Which." } },
  ${extra}
}
`;

let fake, gateway;
before(async () => {
  fake = await startFake();
  gateway = await startGateway({
    conf: { workers: 2, lua: { memory_bytes: 48 << 20, instructions: 2000000 } },
    pluginFiles: { rogue, versioned: versioned(1) },
    plugins: ['rogue', 'versioned', ...shippedPlugins],
  });
  await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true, models: ['gpt-*', 'bad-*'] });
  await fake.script('default', { body: bodies.chatBody() });
});
after(() => stopAll(gateway, fake));

const chat = (model, stream = false) => gateway.call('/v1/chat/completions', { key: gateway.key, timeout: 10000,
  body: { model, stream, messages: [{ role: 'user', content: 'Hi' }] } });

// Calls that go on while something else breaks.
async function withTraffic(work) {
  const answers = [];
  let goesOn = true;
  const traffic = Array.from({ length: 4 }, async () => {
    while (goesOn) {
      answers.push(await chat('gpt-traffic'));
      await sleep(5);
    }
  });
  const result = await work();
  goesOn = false;
  await Promise.all(traffic);
  assert.ok(answers.length > 0);
  for (const answer of answers) assert.equal(answer.status, 200, answer.text);
  return result;
}

describe('a bad hook harms its own exchange only', () => {
  for (const [model, where] of [['bad-loop', true], ['bad-pcall', true], ['bad-error', true], ['bad-field', true], ['bad-object', false],
    ['bad-memory', false], ['bad-string', false], ['bad-pattern', false], ['bad-recursion', false]]) {
    test(model, async () => {
      const began = performance.now();
      const answer = await withTraffic(() => chat(model));
      assert.ok(performance.now() - began < 6000, 'stopped in time');
      assert.equal(answer.status, 500, answer.text);
      assert.ok(json(answer).error.message, answer.text);
      assert.ok(!answer.text.includes('init.lua'), 'the client is not told of files');
      if (where) {
        await until(() => gateway.logs().some((line) => /rogue\/init\.lua:\d+/.test(JSON.stringify(line)) &&
          JSON.stringify(line).includes('rogue')), 'a log line with file and line');
      }
      assert.equal((await chat('gpt-after')).status, 200);
    });
  }

  for (const model of ['bad-return', 'bad-select']) {
    test(model, async () => {
      const answer = await withTraffic(() => chat(model));
      assert.equal(answer.status, 500, answer.text);
    });
  }

  test('deny is rendered in the dialect', async () => {
    const answer = await chat('bad-deny');
    assert.equal(answer.status, 451);
    assert.equal(json(answer).error.code, 'not_here');
    const claude = await gateway.call('/v1/messages', { key: gateway.key, body: { model: 'bad-deny', max_tokens: 1, messages: [] } });
    assert.equal(json(claude).type, 'error');
  });

  for (const model of ['gpt-delta-error', 'gpt-delta-loop']) {
    test(`${model}: its stream ends with an error`, async () => {
      await fake.script(model, { body: bodies.chatStream() });
      const answer = await withTraffic(() => chat(model, true));
      assert.ok(answer.status !== 200 || /"error"/.test(answer.text), answer.text);
      assert.ok(!answer.text.includes('[DONE]'), 'no clean end');
    });
  }

  test('a delta hook that changes text', async () => {
    await fake.script('gpt-shout', { body: bodies.chatStream(), split: { random: 12, seed: 5 } });
    const answer = await chat('gpt-shout', true);
    const text = events(answer.text).filter((one) => one.data && one.data !== '[DONE]')
      .map((one) => JSON.parse(one.data).choices[0]?.delta.content ?? '').join('');
    assert.equal(text, 'HELLO THERE.');
    assert.match(answer.text, /\[DONE\]/);
  });

  for (const model of ['gpt-finish-error', 'gpt-finish-loop']) {
    test(`${model}: the answer and the row are there`, async () => {
      const answer = await withTraffic(() => chat(model));
      assert.equal(answer.status, 200);
      await gateway.access(answer);
    });
  }

  for (const what of ['loop', 'error', 'return']) {
    test(`route ${what}`, async () => {
      const answer = await withTraffic(() => gateway.call(`/rogue/${what}`, { timeout: 10000 }));
      assert.equal(answer.status, 500, answer.text);
      assert.doesNotThrow(() => json(answer));
      assert.ok(!answer.text.includes('init.lua'));
    });
  }
});

describe('a plugin answers a model call', () => {
  test('whole', async () => {
    assert.deepEqual(json(await chat('answer-whole')), { hello: 'e2e' });
  });

  test('as a stream of neutral events, in each dialect', async () => {
    const stream = await chat('answer-stream', true);
    const list = events(stream.text).filter((one) => one.data && one.data !== '[DONE]').map((one) => JSON.parse(one.data));
    assert.equal(list.map((one) => one.choices[0]?.delta.content ?? '').join(''), 'one two three');
    assert.ok(stream.text.trimEnd().endsWith('data: [DONE]'));
    const claude = await gateway.call('/v1/messages', { key: gateway.key, body: { model: 'answer-stream', max_tokens: 9, stream: true, messages: [] } });
    assert.match(claude.text, /event: message_start[\s\S]*text_delta[\s\S]*event: message_stop/);
    const responses = await gateway.call('/v1/responses', { key: gateway.key, body: { model: 'answer-stream', stream: true, input: 'x' } });
    assert.match(responses.text, /response\.created[\s\S]*response\.output_text\.delta[\s\S]*response\.completed/);
  });

  test('the same events as one body', async () => {
    const whole = json(await chat('answer-stream'));
    assert.equal(whole.choices[0].message.content, 'one two three');
    assert.deepEqual([whole.usage.prompt_tokens, whole.usage.completion_tokens], [3, 4]);
    const claude = json(await gateway.call('/v1/messages', { key: gateway.key, body: { model: 'answer-stream', max_tokens: 9, messages: [] } }));
    assert.equal(claude.content[0].text, 'one two three');
  });

  test('an error in the answer is told in the stream', async () => {
    const answer = await chat('answer-broken', true);
    assert.ok(!answer.text.includes('[DONE]'), answer.text);
    assert.match(answer.text, /"error"/);
  });
});

describe('reload', () => {
  const version = async () => json(await gateway.call('/versioned')).version;
  const settle = (wanted) => until(async () => (await version()) === wanted, `version ${wanted}`);
  let n = 1;
  const reload = () => gateway.admin('/admin/reload', { method: 'POST' });
  beforeEach(() => gateway.home.writePlugin('versioned', versioned(++n)));

  test('by REST', async () => {
    const answer = await reload();
    assert.equal(answer.status, 200, answer.text);
    assert.equal(await version(), n);
  });

  test('by SIGHUP', async () => {
    gateway.signal('SIGHUP');
    await settle(n);
  });

  test('by the command line', async () => {
    const result = gateway.cli('reload');
    assert.equal(result.code, 0, result.err);
    assert.equal(await version(), n);
  });

  test('a syntax error: the old set stays, file and line are named', async () => {
    await reload();
    const good = n;
    gateway.home.writePlugin('versioned', 'return {\n  name = "versioned",\n  version = = 1\n}\n');
    const rest = await reload();
    assert.equal(rest.status, 400, rest.text);
    assert.match(rest.text, /versioned\/init\.lua:3/);
    const command = gateway.cli('reload');
    assert.equal(command.code, 1);
    assert.match(command.err, /versioned\/init\.lua:3/);
    gateway.signal('SIGHUP');
    await until(() => gateway.err.text.match(/versioned\/init\.lua:3/), 'a log line');
    assert.equal(await version(), good);
    assert.equal((await chat('gpt-after-bad-reload')).status, 200);
    const check = gateway.cli('check');
    assert.equal(check.code, 1);
    assert.match(check.err, /versioned\/init\.lua:3/);
  });

  for (const [what, text, pattern] of [
    ['an error at load', 'error("no luck")\n', /versioned\/init\.lua:1/],
    ['an endless loop at load', 'while true do end\n', /versioned\/init\.lua/],
    ['an unknown field', versioned(1, 'hoks = {},'), /hoks/],
    ['a route without auth', versioned(1).replace(' auth = "none",', ''), /auth/],
    ['an unknown hook', versioned(1, 'hooks = { selekt = function() end },'), /selekt/],
    ['an error in init', versioned(1, 'init = function() error("init broke") end,'), /init broke/],
    ['bytecode', '\x1bLJ\x02\x02', /versioned/],
  ]) {
    test(`${what}: refused`, async () => {
      await reload();
      const good = n;
      gateway.home.writePlugin('versioned', text);
      const answer = await reload();
      assert.equal(answer.status, 400, answer.text);
      assert.match(answer.text, pattern);
      assert.equal(await version(), good);
    });
  }

  test('running streams finish on their generation, none is lost', async () => {
    await fake.script('gpt-long', { body: bodies.chatStream(Array.from({ length: 20 }, (_, i) => `${i} `)), split: { size: 160 }, delay_ms: 15 });
    const streams = Array.from({ length: 5 }, () => chat('gpt-long', true));
    for (let i = 0; i < 8; i++) {
      gateway.home.writePlugin('versioned', versioned(++n));
      assert.equal((await reload()).status, 200);
      assert.equal(await version(), n);
      await sleep(20);
    }
    for (const answer of await Promise.all(streams)) {
      assert.equal(answer.status, 200);
      assert.ok(answer.text.trimEnd().endsWith('data: [DONE]'));
    }
  });

  test('reloads under load refuse nothing', async () => {
    await withTraffic(async () => {
      for (let i = 0; i < 10; i++) assert.equal((await reload()).status, 200);
    });
  });
});

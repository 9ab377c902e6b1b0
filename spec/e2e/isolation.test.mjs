// Plugins that misbehave in a running gateway: every hook, cut-off clients, bursts of reloads, a
// state full of one plugin's memory, and a trusted plugin that nothing but the end of the process
// can stop.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { json, sleep, until } from './kit/http.mjs';
import { makeHome, shippedPlugins, startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

// Under the thread sanitizer Lua's loops take minutes; the threads' part is in spec/unit/script.
const suite = process.env.MOONGATE_NO_GUARD === 'tsan' ? describe.skip : describe;

const HOOKS = ['identify', 'admit', 'select', 'prepare', 'reply', 'body', 'delta', 'price', 'error', 'finish'];

// gpt-loop-HOOK: that hook never ends. gpt-wait-WHAT: admit waits for it.
const hookBody = (hook) => `function(ctx) if ctx.model == "gpt-loop-${hook}" or ctx.headers["x-loop"] == "${hook}" then
  while true do pcall(function() while true do end end) end end end`;
const rogue = (silentPort) => `
local URL = "http://127.0.0.1:${silentPort}/"
local kept, seen = {}, {}
local waits = {
  sleep = function(gw) gw.sleep(60) end,
  fetch = function(gw) gw.fetch { url = URL, timeout = 60 } end,
  query = function(gw)
    while true do
      gw.db.query("SELECT 1")
      gw.sleep(0.01)
    end
  end,
  all = function(gw) gw.all { function() gw.sleep(60) end, function() gw.fetch { url = URL, timeout = 60 } end } end,
  lock = function(gw) gw.lock("wanted", 60, 60) end,
}
local function wait(ctx, what)
  local gw = ctx.gw
  if what ~= "lock" then assert(gw.lock("held-" .. what, 60)) end
  seen[what] = "waits"
  local ok, why = pcall(waits[what], gw)
  if ok then seen[what] = "went on" return end
  local again = pcall(gw.sleep, 0)
  seen[what] = tostring(why) .. (again and " but waited" or "")
  error(why, 0)
end
return {
  name = "rogue", version = "1.0.0", api = 1, about = "Misbehaves on request.", on_error = "deny",
  needs = { db = true, fetch = { "127.0.0.1:${silentPort}" } },
  wants = { "text" },
  hooks = {
    ${HOOKS.filter((hook) => hook !== 'admit').map((hook) => `${hook} = ${hookBody(hook)},`).join('\n    ')}
    admit = function(ctx)
      local what = ctx.model and ctx.model:match("^gpt%-wait%-(%a+)$")
      if what then return wait(ctx, what) end
      if ctx.model == "gpt-loop-admit" then while true do pcall(function() while true do end end) end end
      if ctx.model == "gpt-hog" then
        while true do kept[#kept + 1] = ("x"):rep(100000) .. #kept end
      end
    end,
  },
  routes = {
    { "GET", "/rogue/seen", function(_, gw)
      local locks = {}
      for what in pairs(waits) do
        local lock = what ~= "lock" and gw.lock("held-" .. what, 1)
        locks[what] = what == "lock" or lock ~= nil
        if lock then lock:release() end
      end
      return 200, { seen = seen, free = locks }
    end, auth = "none", about = "What the waits saw." },
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

const plugins = ['rogue', 'versioned', ...shippedPlugins];
const lua = { memory_bytes: 32 << 20, instructions: 1000000 };
let fake, gateway, silent;

before(async () => {
  silent = net.createServer(() => {});
  silent.on('connection', (socket) => socket.on('error', () => {}));
  await new Promise((resolve) => silent.listen(0, '127.0.0.1', resolve));
  fake = await startFake();
  gateway = await startGateway({
    conf: { workers: 1, lua, allowed_private_hosts: ['127.0.0.0/8'] },
    pluginFiles: { rogue: rogue(silent.address().port), versioned: versioned(1) }, plugins,
  });
  await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true, models: ['gpt-*'] });
  await fake.script('default', { body: bodies.chatBody() });
  await fake.script('gpt-loop-error', { status: 400, body: '{"error":{"message":"no","type":"x"}}' });
});
after(async () => {
  await stopAll(gateway, fake);
  silent.close();
});

const chat = (model, more = {}) => gateway.call('/v1/chat/completions', { key: gateway.key, timeout: 10000, ...more,
  body: { model, stream: more.stream ?? false, messages: [{ role: 'user', content: 'Hi' }] } });

// Calls that go on while something else breaks, all of them whole.
async function withTraffic(work) {
  const answers = [];
  let goesOn = true;
  const traffic = Array.from({ length: 4 }, async () => {
    while (goesOn) {
      const began = performance.now();
      const answer = await chat('gpt-traffic');
      answers.push({ status: answer.status, ms: performance.now() - began, text: answer.text });
      await sleep(5);
    }
  });
  try {
    return await work(answers);
  } finally {
    goesOn = false;
    await Promise.all(traffic);
    for (const answer of answers) assert.equal(answer.status, 200, answer.text);
    assert.ok(answers.length > 0);
  }
}

const resident = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${gateway.child.pid}/status`, 'utf8'))[1]);

suite('an endless loop in each hook, with one worker', () => {
  for (const hook of HOOKS) {
    test(hook, async () => {
      const stream = hook === 'delta';
      if (stream) await fake.script('gpt-loop-delta', { body: bodies.chatStream() });
      const answers = await withTraffic(async () => {
        const out = [];
        for (let n = 0; n < 4; n++) out.push(await chat(`gpt-loop-${hook}`, { stream, headers: hook === 'identify' ? { 'x-loop': hook } : {} })); // no model yet
        return out;
      });
      for (const answer of answers) {
        if (hook === 'price' || hook === 'finish') assert.equal(answer.status, 200, answer.text);
        else if (hook === 'error') assert.equal(answer.status, 400, answer.text);
        else if (stream) assert.ok(!answer.text.includes('[DONE]') && /"error"/.test(answer.text), answer.text);
        else {
          assert.equal(answer.status, 500, answer.text);
          assert.match(answer.text, /plugin_error/);
          assert.match(answer.text, /\brogue\b/);
        }
      }
      await until(() => gateway.logs('plugin_error').filter((line) => line.plugin === 'rogue' && line.in === hook).length >= 4,
        'log lines that name plugin and hook');
    });
  }
});

suite('a client that goes away while its hook waits', () => {
  for (const what of ['sleep', 'fetch', 'query', 'all', 'lock']) {
    test(what, async () => {
      const seen = async () => json(await gateway.call('/rogue/seen'));
      const socket = net.connect(gateway.port, '127.0.0.1');
      const body = JSON.stringify({ model: `gpt-wait-${what}`, messages: [] });
      let holder;
      if (what === 'lock') { // somebody else has it: a second call waits
        holder = net.connect(gateway.port, '127.0.0.1');
        holder.write(`POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\n` +
          `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
        await sleep(100);
      }
      socket.write(`POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\n` +
        `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
      await until(async () => (await seen()).seen[what] !== undefined, 'it waits');
      if (what === 'lock') await sleep(100);
      socket.destroy();
      holder?.destroy();
      if (what !== 'lock') {
        await until(async () => (await seen()).seen[what] === 'cancelled', 'cancelled, once');
        assert.equal((await seen()).free[what], true, 'its lock is free');
      }
      assert.equal((await chat('gpt-after')).status, 200);
    });
  }
});

test('a state full of one plugin is given up, others go on', async () => {
  const hog = await chat('gpt-hog');
  assert.ok([500, 503].includes(hog.status), hog.text);
  await until(async () => (await chat('gpt-after')).status === 200, 'calls are answered again', 8000);
  await withTraffic(() => sleep(300));
  assert.ok(gateway.logs('plugin_memory').some((line) => line.plugin === 'rogue'), 'the log names it');
});

suite('bursts of SIGHUP', () => {
  const version = async () => json(await gateway.call('/versioned')).version;
  let number = 1;

  test('streams and calls stay whole, memory is flat, the last version runs', async () => {
    await fake.script('gpt-long', { body: bodies.chatStream(Array.from({ length: 40 }, (_, i) => `${i} `)),
      split: { size: 200 }, delay_ms: 20 });
    const burst = async (count) => {
      for (let n = 0; n < count; n++) {
        gateway.home.writePlugin('versioned', versioned(++number));
        gateway.signal('SIGHUP');
        await sleep(10);
      }
      const wanted = number;
      await until(async () => (await version()) === wanted, `version ${wanted}`, 15000);
    };
    await burst(40);
    await sleep(300);
    const base = resident();
    const streams = Array.from({ length: 4 }, () => chat('gpt-long', { stream: true, timeout: 30000 }));
    await withTraffic(() => burst(80));
    for (const answer of await Promise.all(streams)) {
      assert.equal(answer.status, 200);
      assert.ok(answer.text.trimEnd().endsWith('data: [DONE]'), answer.text.slice(-300));
    }
    await burst(80);
    await sleep(300);
    if (!process.env.MOONGATE_NO_GUARD) assert.ok(resident() < base + 24000, `${base} KiB, then ${resident()} KiB`);
  });

  for (const [what, text, pattern] of [
    ['a syntax error', 'return {\n  name = "versioned",\n  version = = 1\n}\n', /versioned\/init\.lua:3/],
    ['an error in init', versioned(1, 'init = function() error("init broke") end,'), /versioned\/init\.lua:\d+: init broke/],
    ['an endless loop in init', versioned(1, 'init = function() while true do pcall(function() while true do end end) end end,'),
      /versioned\/init\.lua:\d+: instruction budget/],
    ['a wrong schema', versioned(1, 'config = schema.record { a = 5 },'), /versioned\/init\.lua/],
    ['a wrong migration', versioned(1, 'migrations = "migrations/",'), /0001_wrong\.sql|p_versioned_/],
  ]) {
    test(`${what} in a burst: the old set goes on and the log says where`, async () => {
      const good = await version();
      if (what === 'a wrong migration') {
        const folder = path.join(gateway.dir, 'plugins/versioned/migrations');
        mkdirSync(folder, { recursive: true });
        writeFileSync(path.join(folder, '0001_wrong.sql'), 'CREATE TABLE stolen (id INTEGER);');
      }
      gateway.home.writePlugin('versioned', text);
      const mark = gateway.err.text.length;
      await withTraffic(async () => {
        for (let n = 0; n < 5; n++) {
          gateway.signal('SIGHUP');
          await sleep(10);
        }
        await until(() => pattern.test(gateway.err.text.slice(mark)), 'file and line in the log', 15000);
        const answer = await until(async () => {
          const one = await gateway.admin('/admin/reload', { method: 'POST' });
          return one.text.includes('a reload is running') ? null : one;
        }, 'a reload of our own');
        assert.equal(answer.status, 400, answer.text);
        assert.match(answer.text, pattern);
      });
      assert.equal(await version(), good);
      gateway.home.writePlugin('versioned', versioned(good));
    });
  }
});

suite('a trusted plugin in an endless loop', () => {
  const looper = `return { name = "looper", version = "1.0.0", api = 1, about = "Loops.", on_error = "deny", hooks = {
    admit = function(ctx)
      local n = 0
      while ctx.model ~= "gpt-fine" do
        n = n + 1
        if n < 0 then break end
        for i = 1, 1e9 do n = (n + i) % 7 end
      end
    end } }`;

  test('is named while it is stuck, then ends the process, which starts again', async () => {
    const options = { conf: { workers: 1, lua: { ...lua, stuck_ms: 1500 }, plugins: [{ name: 'looper', trusted: true }, ...shippedPlugins] },
      pluginFiles: { looper } };
    const home = makeHome(options);
    const one = await startGateway({ home });
    await one.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true, models: ['gpt-*'] });
    await fake.script('gpt-fine', { body: bodies.chatBody() });
    const ask = (which, model) => which.call('/v1/chat/completions', { key: one.key, timeout: 8000, body: { model, messages: [] } });
    assert.equal((await ask(one, 'gpt-fine')).status, 200);
    const began = performance.now();
    ask(one, 'gpt-loop').catch(() => {});
    const { code, signal } = await one.child.exited;
    assert.ok(performance.now() - began > 1400, 'it was given its time');
    assert.equal(signal, 'SIGABRT', `ended with ${code}`);
    assert.ok(one.logs('plugin_stuck').some((line) => line.plugin === 'looper' && line.in === 'admit'), 'named while stuck');
    assert.match(one.err.text, /the plugin "looper" has been stuck in admit/);
    const again = await startGateway({ home, key: false }); // what a supervisor does
    assert.equal((await ask(again, 'gpt-fine')).status, 200);
    await again.stop();
  });
});

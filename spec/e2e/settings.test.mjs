// The shipped gateway.conf.lua with its variables, and what plugins get from the core: fetch, sql,
// key-value, sleep, tasks — under the guard, so that none of it waits on an event loop.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { call, json, until } from './kit/http.mjs';
import { cli, makeHome, project, shippedPlugins, startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

const shippedConf = () => readFileSync(path.join(project, 'gateway.conf.lua'), 'utf8');
let fake;
before(async () => { fake = await startFake(); });
after(() => fake.stop());

describe('the shipped configuration', () => {
  let gateway;
  before(async () => {
    const home = makeHome({ confText: shippedConf(), env: {
      HOST: '127.0.0.1', PORT: '0', WORKERS: '2', CORS_ORIGINS: 'https://app.example', TRUSTED_PROXIES: '127.0.0.1/32',
      PROXY_PREFIX: '/gate', ADMIN_LISTEN: '127.0.0.1:0',
      UPSTREAMS: JSON.stringify([{ name: 'imported', provider: 'openai', base_url: fake.base('imported'), api_key: 'sk-imported-secret', is_default: true }]) } });
    gateway = await startGateway({ home });
    await fake.script('imported', { body: bodies.chatBody() });
  });
  after(() => gateway?.stop());
  const chat = (target, headers = {}) => gateway.call(target, { key: gateway.key, headers, body: { model: 'gpt-1', messages: [] } });

  test('UPSTREAMS is imported and serves', async () => {
    assert.equal((await chat('/v1/chat/completions')).status, 200);
    const { items } = json(await gateway.admin('/admin/upstreams'));
    assert.deepEqual(items.map((one) => [one.name, one.is_default, one.weight]), [['imported', true, 50]]);
    assert.deepEqual(gateway.filesWith('sk-imported-secret'), []);
  });

  test('PROXY_PREFIX moves the second mount', async () => {
    assert.equal((await chat('/gate/v1/chat/completions')).status, 200);
    assert.equal((await chat('/proxy/v1/chat/completions')).status, 404);
  });

  test('CORS_ORIGINS', async () => {
    const answer = await chat('/v1/chat/completions', { origin: 'https://app.example' });
    assert.equal(answer.headers['access-control-allow-origin'], 'https://app.example');
    const other = await chat('/v1/chat/completions', { origin: 'https://evil.example' });
    assert.equal(other.headers['access-control-allow-origin'], undefined);
    const preflight = await gateway.call('/v1/chat/completions', { method: 'OPTIONS', headers: { origin: 'https://app.example', 'access-control-request-method': 'POST' } });
    assert.match(preflight.headers['access-control-allow-methods'], /POST/);
  });

  test('TRUSTED_PROXIES are believed', async () => {
    const answer = await chat('/v1/chat/completions', { 'x-forwarded-for': '198.51.100.7, 203.0.113.9' });
    assert.equal((await gateway.access(answer)).client_ip, '203.0.113.9');
  });

  test('with ADMIN_LISTEN metrics and reasons are not on the public listener', async () => {
    assert.equal((await gateway.call('/metrics')).status, 404);
    const ready = await gateway.call('/readyz');
    assert.deepEqual([ready.status, json(ready)], [200, { status: 'ready' }]);
    const [started] = gateway.logs('started');
    const base = `http://127.0.0.1:${started.admin_port}`;
    assert.match((await call(`${base}/metrics`)).text, /moongate_build_info/);
    assert.deepEqual(json(await call(`${base}/readyz`)).reasons, []);
  });

  test('.env beside the file is read, the environment is stronger', () => {
    const home = makeHome({ confText: shippedConf(), env: { LOG_LEVEL: 'warn' } });
    writeFileSync(path.join(home.dir, '.env'), 'LOG_LEVEL=debug\nAPP_NAME="From file"\n');
    const { out, code, err } = cli(home, 'config', 'dump');
    home.remove();
    assert.equal(code, 0, err);
    assert.match(out, /From file/);
    assert.match(out, /log\.level[^\n]*warn/);
  });
});

const busy = `
local gw
local seen = 0
return {
  name = "busy", version = "1.0.0", api = 1, about = "Uses what the core offers.",
  needs = { fetch = { "127.0.0.1" }, db = true },
  migrations = "migrations/",
  init = function(the_gw) gw = the_gw end,
  tasks = { { name = "tick", every = 0.2, on = "process", run = function(gw) gw.kv.incr("busy.ticks", 1) end } },
  routes = {
    { "GET", "/busy/fetch", function(req, gw)
        local answer, err = gw.fetch { url = req.query.url, method = "POST", json = { a = 1 }, timeout = 2 }
        if not answer then return 200, { err = tostring(type(err) == "table" and err.message or err) } end
        return 200, { status = answer.status, body = answer.body }
      end, auth = "none", about = "Fetches.", query = schema.record { url = schema.text {} } },
    { "GET", "/busy/db", function(_, gw)
        local done, err = gw.db.transaction { { "INSERT INTO p_busy_notes (text) VALUES (?)", args = { "it's; DROP" }, expect_rows = 1 } }
        if not done then return 500, { err = err.message or tostring(err) } end
        local rows, why = gw.db.query("SELECT id, text FROM p_busy_notes WHERE text = ? ORDER BY id", "it's; DROP")
        if not rows then return 500, { err = why.message or tostring(why) } end
        return 200, { rows = json.array(rows) }
      end, auth = "none", about = "Writes and reads." },
    { "GET", "/busy/steal", function(_, gw)
        local rows, err = gw.db.query("SELECT * FROM api_keys")
        local done, why = gw.db.transaction { { "DELETE FROM api_keys" } }
        return 200, { refused = rows == nil or #rows == 0, kept = done == nil, err = tostring(type(why) == "table" and why.message or why) }
      end, auth = "none", about = "Tries what it may not." },
    { "GET", "/busy/ticks", function(_, gw) return 200, { ticks = gw.kv.get("busy.ticks") or 0 } end, auth = "none", about = "Counts." },
    { "GET", "/busy/sleep", function(_, gw)
        local before = gw.boot_ms()
        local results = gw.all { function() gw.sleep(0.1) return 1 end, function() gw.sleep(0.1) return 2 end }
        return 200, { ms = gw.boot_ms() - before, count = #results }
      end, auth = "none", about = "Sleeps twice at once." },
    { "POST", "/busy/{id}/echo", function(req)
        return 200, { id = req.params.id, body = req.body }
      end, auth = "key", about = "Says what came.", params = { id = schema.integer { min = 1 } },
      body = schema.record { name = schema.text { min = 1, max = 5 }, tags = schema.list { of = schema.text {}, optional = true } } },
  },
}
`;

describe('services of plugins', () => {
  let gateway;
  before(async () => {
    const home = makeHome({ pluginFiles: { busy }, plugins: ['busy', ...shippedPlugins], conf: { allowed_private_hosts: ['127.0.0.0/8'] } });
    home.writePlugin('busy/migrations', 'CREATE TABLE p_busy_notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;\n', '0001_notes.sql');
    gateway = await startGateway({ home });
    await fake.script('fetched', { status: 201, body: 'fetched' });
  });
  after(() => gateway?.stop());
  const ticks = async () => Number((await get('/busy/ticks')).ticks);
  const get = async (target) => json(await gateway.call(target));

  test('fetch', async () => {
    await fake.clear();
    const answer = await get(`/busy/fetch?url=${encodeURIComponent(`${fake.base('fetched')}/x`)}`);
    assert.deepEqual(answer, { status: 201, body: 'fetched' });
    const [seen] = await fake.requests('fetched');
    assert.deepEqual([seen.method, seen.target, seen.body], ['POST', '/s/fetched/x', '{"a":1}']);
  });

  test('fetch: an undeclared host, a dead port', async () => {
    const foreign = await gateway.call('/busy/fetch?url=http%3A%2F%2Fexample.org%2F');
    assert.ok(foreign.status === 500 || json(foreign).err, foreign.text);
    const dead = await get('/busy/fetch?url=http%3A%2F%2F127.0.0.1%3A1%2F');
    assert.ok(dead.err, JSON.stringify(dead));
  });

  test('sql: own tables, arguments are arguments', async () => {
    await get('/busy/db');
    const { rows } = await get('/busy/db');
    assert.deepEqual(rows.map((row) => row.text), ["it's; DROP", "it's; DROP"]);
  });

  test('sql: keys are out of reach', async () => {
    const answer = await get('/busy/steal');
    assert.equal(answer.kept, true, JSON.stringify(answer));
    assert.equal((await gateway.call('/v1/models', { key: gateway.key })).status, 200);
  });

  test('two sleeps at once take the time of one', async () => {
    const { ms, count } = await get('/busy/sleep');
    assert.equal(count, 2);
    assert.ok(ms >= 90 && ms < 190, `${ms} ms`);
  });

  test('a task runs once per process', async () => {
    await until(async () => (await ticks()) >= 2, 'ticks');
    const from = (await ticks()), began = performance.now();
    await until(async () => (await ticks()) >= from + 4, 'four more');
    assert.ok(performance.now() - began > 500, 'not on each worker');
  });

  test('route schemas', async () => {
    const post = (target, body, key = gateway.key) => gateway.call(target, { key, body });
    assert.deepEqual(json(await post('/busy/7/echo', { name: 'abc' })), { id: 7, body: { name: 'abc' } });
    for (const [target, body] of [['/busy/0/echo', { name: 'a' }], ['/busy/x/echo', { name: 'a' }], ['/busy/7/echo', {}],
      ['/busy/7/echo', { name: 'toolong' }], ['/busy/7/echo', { name: 5 }], ['/busy/7/echo', { name: 'a', more: 1 }]]) {
      const answer = await post(target, body);
      assert.equal(answer.status, 422, `${target} ${JSON.stringify(body)}: ${answer.text}`);
      assert.equal(json(answer).error.code, 'validation_error');
    }
    assert.equal((await post('/busy/7/echo', { name: 'a' }, 'nobody')).status, 401);
    assert.equal((await gateway.call('/busy/7/echo')).status, 405);
  });
});

// The verbs of the command line, with and without a running gateway; what it refuses to start with.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { json } from './kit/http.mjs';
import { cli, makeHome, startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

const homes = [];
const home = (options) => {
  const made = makeHome(options);
  homes.push(made);
  return made;
};
after(() => homes.forEach((one) => one.remove()));

describe('what it refuses to start with', () => {
  for (const [name, value, what] of [['ENCRYPTION_KEY', null, 'without'], ['SECRET_KEY', null, 'without'], ['ENCRYPTION_KEY', 'short', 'with a short'],
    ['ENCRYPTION_KEY', 'A'.repeat(44), 'with a malformed'], ['SECRET_KEY', 'changeme', 'with a sample'], ['SECRET_KEY', 'short', 'with a short'],
    ['ADMIN_PASSWORD', 'admin123', 'with a sample']]) {
    test(`${what} ${name}${value ? ` "${value.slice(0, 8)}"` : ''}`, () => {
      const isPassword = name === 'ADMIN_PASSWORD';
      const one = home({ env: isPassword ? {} : { [name]: value }, conf: isPassword ? { admin: { username: 'admin', password: value } } : {} });
      const result = cli(one, 'run');
      assert.equal(result.code, 1, result.out + result.err);
      assert.ok(result.err.includes(name), result.err);
      if (value && value.length > 6) assert.ok(!result.err.includes(value), 'the value is not repeated');
      const check = cli(one, 'check');
      assert.equal(check.code, 1);
      assert.ok(check.err.includes(name), check.err);
    });
  }
});

describe('check', () => {
  test('a good configuration', () => {
    const result = cli(home(), 'check');
    assert.equal(result.code, 0, result.err);
  });

  for (const [what, text, pattern] of [
    ['a syntax error', 'return {\n  workers = = 2,\n}\n', /gateway\.conf\.lua:2/],
    ['an unknown key, with a suggestion', 'return {\n  workers = 1,\n  wokers = 2,\n}\n', /gateway\.conf\.lua:3.*wokers[\s\S]*workers/],
    ['an unknown nested key', 'return {\n  timeouts = {\n    conect = 2,\n  },\n}\n', /conect[\s\S]*connect/],
    ['a wrong type', 'return {\n  workers = "many",\n}\n', /gateway\.conf\.lua:2.*workers/],
    ['out of range', 'return {\n  workers = 100000,\n}\n', /workers/],
    ['an unknown plugin', 'return {\n  plugins = { "no_such_plugin" },\n}\n', /no_such_plugin/],
    ['an error at run', 'error("stop here")\n', /gateway\.conf\.lua:1/],
    ['no table', 'return 5\n', /gateway\.conf\.lua/],
    ['an endless loop', 'while true do end\n', /gateway\.conf\.lua/],
    ['io is not there', 'io.open("/etc/passwd")\nreturn {}\n', /gateway\.conf\.lua:1/],
  ]) {
    test(`${what}: exit 1, file and line`, () => {
      const result = cli(home({ confText: text }), 'check');
      assert.equal(result.code, 1, result.out + result.err);
      assert.match(result.err, pattern);
    });
  }

  test('a file that is not there', () => {
    const one = home();
    one.confFile += '.gone';
    const result = cli(one, 'check');
    assert.equal(result.code, 1);
    assert.match(result.err, /gateway\.conf\.lua\.gone/);
  });
});

describe('without a gateway', () => {
  test('version, help, an unknown verb', () => {
    const one = home();
    assert.match(cli(one, 'version').out, /^moongate \d+\.\d+\.\d+\n$/);
    assert.match(JSON.parse(cli(one, 'version', '--json').out).version, /^\d/);
    const unknown = cli(one, 'rn');
    assert.equal(unknown.code, 2);
    assert.match(unknown.err, /rn/);
  });

  test('config dump: values, sources, no secrets', () => {
    const one = home({ env: { LOG_LEVEL: 'warn' } });
    const { code, out, err } = cli(one, 'config', 'dump');
    assert.equal(code, 0, err);
    assert.match(out, /workers/);
    assert.match(out, /keepalive/);
    for (const secret of Object.values(one.secrets)) assert.ok(!out.includes(secret), 'masked');
  });

  test('migrate up, status', () => {
    const one = home();
    const up = cli(one, 'migrate', 'up');
    assert.equal(up.code, 0, up.err);
    const status = cli(one, 'migrate', 'status');
    assert.equal(status.code, 0, status.err);
    assert.match(status.out, /main\s+0001_base\.sql\s+applied/);
    assert.match(status.out, /logs\s+0001_base\.sql\s+applied/);
    const dir = path.join(one.dir, 'data');
    assert.equal(statSync(dir).mode & 0o077, 0, 'the folder is for its owner only');
    for (const name of readdirSync(dir)) assert.equal(statSync(path.join(dir, name)).mode & 0o077, 0, name);
  });

  test('key create works offline, health and reload do not', () => {
    const one = home();
    const made = cli(one, 'key', 'create', '--name', 'offline', '--json');
    assert.equal(made.code, 0, made.err);
    assert.match(JSON.parse(made.out).key, /^sk-/);
    for (const verb of ['health', 'reload']) assert.equal(cli(one, verb).code, 1, verb);
  });

  test('plugin list and plugin test', () => {
    const one = home({ pluginFiles: { mine: 'return { name = "mine", version = "0.1.0", api = 1, about = "Nothing." }\n' } });
    const list = cli(one, 'plugin', 'list');
    assert.equal(list.code, 0, list.err);
    assert.match(list.out, /mine/);
    assert.match(list.out, /auth_key/);
    assert.equal(cli(one, 'plugin', 'test', 'mine').code, 0);
    assert.equal(cli(one, 'plugin', 'test', 'not_there').code, 1);
  });
});

describe('beside a running gateway', () => {
  let fake, gateway;
  before(async () => {
    fake = await startFake();
    gateway = await startGateway({ key: false });
    await fake.script('default', { body: bodies.chatBody() });
  });
  after(() => stopAll(gateway, fake));
  const chat = (key) => gateway.call('/v1/chat/completions', { key, body: { model: 'gpt-1', messages: [] } });

  test('key list shows all pages', async () => {
    const one = await gateway.upstream({ name: 'pages', base_url: fake.base('pages') });
    const made = await Promise.all(Array.from({ length: 130 }, (_, i) =>
      gateway.admin('/admin/keys', { body: { name: `page-${i}`, upstream_ids: [one.id] } })));
    assert.deepEqual(made.filter((answer) => answer.status !== 201), []);
    const text = gateway.cli('key', 'list');
    assert.equal(text.out.split('\n').filter((line) => /page-\d+$/.test(line)).length, 130);
    const list = JSON.parse(gateway.cli('key', 'list', '--json').out);
    assert.ok(list.total >= 130 && list.items.length === list.total);
    assert.equal((await gateway.admin(`/admin/upstreams/${one.id}`, { method: 'DELETE' })).status, 204);
  });

  test('upstream create, list, test', () => {
    gateway.home.env.THE_KEY = 'sk-canary-cli-upstream';
    const made = gateway.cli('upstream', 'create', '--name', 'oai', '--provider', 'openai', '--base-url', fake.url,
      '--api-key-env', 'THE_KEY', '--models', 'gpt-1', '--default');
    assert.equal(made.code, 0, made.err);
    const list = gateway.cli('upstream', 'list');
    assert.equal(list.code, 0, list.err);
    assert.match(list.out, /oai\s+openai\s+active/);
    assert.ok(!(made.out + list.out).includes('canary'));
    assert.equal(gateway.cli('upstream', 'create', '--name', 'oai', '--provider', 'openai', '--base-url', fake.url).code, 1, 'taken');
  });

  test('key create, list, revoke: each holds for the next call', async () => {
    const made = gateway.cli('key', 'create', '--name', 'cli', '--upstreams', 'oai', '--json');
    assert.equal(made.code, 0, made.err);
    const { id, key } = JSON.parse(made.out);
    assert.equal((await chat(key)).status, 200);
    const list = gateway.cli('key', 'list');
    assert.ok(list.out.includes(id) && list.out.includes('active') && !list.out.includes(key), list.out);
    const rest = json(await gateway.admin('/admin/keys')).items.find((one) => one.id === id);
    assert.equal(rest.name, 'cli');
    assert.equal(gateway.cli('key', 'revoke', id).code, 0);
    for (let i = 0; i < 6; i++) assert.equal((await chat(key)).status, 401);
    assert.equal(gateway.cli('key', 'revoke', '00000000-0000-4000-8000-000000000000').code, 1);
    assert.equal(gateway.cli('key', 'create', '--name', 'x', '--upstreams', 'nowhere').code, 1);
  });

  test('health, reload, migrate status, check', () => {
    const health = gateway.cli('health');
    assert.equal(health.code, 0, health.err);
    assert.match(health.out, /"ready":true/);
    assert.equal(gateway.cli('reload').code, 0);
    const status = gateway.cli('migrate', 'status');
    assert.equal(status.code, 0, status.err);
    assert.match(status.out, /applied/);
    const check = gateway.cli('check');
    assert.equal(check.code, 0, check.err);
  });

  test('the control socket is for its owner only', () => {
    assert.equal(statSync(path.join(gateway.dir, 'control.sock')).mode & 0o077, 0);
  });
});

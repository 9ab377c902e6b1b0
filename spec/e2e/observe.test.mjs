// Probes and metrics, the structured log, and the guard itself.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { json, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

let fake, gateway;
before(async () => {
  fake = await startFake();
  gateway = await startGateway();
});
after(() => stopAll(gateway, fake));

describe('probes', () => {
  for (const target of ['/healthz', '/health', '/api/health']) {
    test(`GET ${target}`, async () => {
      const answer = await gateway.call(target);
      assert.deepEqual([answer.status, json(answer)], [200, { status: 'ok' }]);
    });
  }

  test('/readyz', async () => {
    const answer = await gateway.call('/readyz');
    assert.equal(answer.status, 200, answer.text);
    assert.equal(json(answer).status, 'ready');
  });
});

describe('metrics', () => {
  const lines = async () => (await gateway.call('/metrics')).text.split('\n').filter((line) => line && !line.startsWith('#'));

  test("Prometheus' text format", async () => {
    const answer = await gateway.call('/metrics');
    assert.equal(answer.status, 200, answer.text);
    assert.match(answer.headers['content-type'], /^text\/plain; version=0\.0\.4/);
    for (const line of await lines()) assert.match(line, /^[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^}]*\})? [-+0-9.eEinfNa]+$/, line);
    assert.match(answer.text, /^# TYPE /m);
  });

  test('calls are counted', async () => {
    await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true, models: ['gpt-*'] });
    await fake.script('default', { body: bodies.chatBody() });
    const total = async () => (await lines()).filter((line) => /requests_total/.test(line) && /200/.test(line))
      .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
    const before200 = await total();
    for (let i = 0; i < 5; i++) {
      assert.equal((await gateway.call('/v1/chat/completions', { key: gateway.key, body: { model: 'gpt-1', messages: [] } })).status, 200);
    }
    await until(async () => (await total()) >= before200 + 5, 'five more calls');
    assert.ok((await lines()).some((line) => /upstream/.test(line) && line.includes('oai')), 'by upstream');
  });

  test('not for strangers behind a proxy', async () => {
    const answer = await gateway.call('/metrics', { headers: { 'x-forwarded-for': '203.0.113.9' } });
    assert.ok([401, 403].includes(answer.status), `${answer.status}`);
    const admin = await gateway.admin('/metrics', { headers: { 'x-forwarded-for': '203.0.113.9' } });
    assert.equal(admin.status, 200);
  });
});

describe('log', () => {
  test('one JSON line per exchange, no other text on stderr', async () => {
    const answer = await gateway.call('/v1/chat/completions', { key: gateway.key, body: { model: 'gpt-1', messages: [] } });
    const line = await gateway.access(answer);
    for (const field of ['ts', 'level', 'request_id', 'client_ip', 'method', 'path', 'route', 'status', 'dialect', 'key_prefix',
      'model_requested', 'model_routed', 'upstream', 'attempts', 'stream', 'dur_ms', 'bytes_in', 'bytes_out', 'tokens', 'cost_nano'])
      assert.ok(field in line, field);
    assert.equal(gateway.logs('access').filter((one) => one.request_id === line.request_id).length, 1);
    for (const text of gateway.err.text.split('\n').filter(Boolean)) assert.doesNotThrow(() => JSON.parse(text), text);
  });

  test('a forged forwarding header is not believed', async () => {
    const answer = await gateway.call('/v1/models', { key: gateway.key, headers: { 'x-forwarded-for': '203.0.113.9' } });
    const line = await gateway.access(answer);
    assert.equal(line.client_ip, '127.0.0.1');
  });

  test('control bytes in what clients send do not break a line', async () => {
    const answer = await gateway.call('/v1/chat/completions', { key: gateway.key, body: { model: 'a\nb\u0000"c\u001b[31m', messages: [] } });
    assert.equal(answer.status, 404);
    assert.equal((await gateway.access(answer)).model_requested, 'a\nb\u0000"c\u001b[31m');
  });
});

describe('the guard', () => {
  test('is loaded', { skip: process.env.MOONGATE_NO_GUARD ? 'a build without it' : false }, () => {
    assert.ok(gateway.guarded, 'libmoongate_guard.so is there and preloaded');
  });
});

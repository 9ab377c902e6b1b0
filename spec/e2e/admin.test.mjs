// The admin REST surface, exactly: statuses, shapes, masks, texts; changes serve at once.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { json } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

let fake, gateway;
before(async () => {
  fake = await startFake();
  gateway = await startGateway({ key: false });
  await fake.script('default', { body: bodies.chatBody() });
});
after(() => stopAll(gateway, fake));

const admin = (method, target, body) => gateway.admin(target, { method, body });
const upstreamBody = (name, more = {}) => ({ name, provider: 'openai', base_url: fake.base(name), api_key: 'sk-upstream-secret-7890', ...more });
const newUpstream = async (name, more) => json(await admin('POST', '/admin/upstreams', upstreamBody(name, more)));
const newKey = async (upstreams, more = {}) => json(await admin('POST', '/admin/keys',
  { name: 'k', upstream_ids: upstreams.map((one) => one.id), ...more }));
const chat = (key, model = 'gpt-x', headers = {}) => gateway.call('/v1/chat/completions', { key, headers,
  body: { model, messages: [{ role: 'user', content: 'Hi' }] } });

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?$/;

describe('authentication', () => {
  for (const [what, key, headers] of [['none', undefined, {}], ['wrong', 'wrong-token', {}], ['a prefix', undefined, {}],
    ['not bearer', undefined, { authorization: 'Basic YTpi' }], ['empty', undefined, { authorization: 'Bearer ' }]]) {
    for (const [method, target] of [['GET', '/admin/keys'], ['POST', '/admin/keys'], ['GET', '/admin/upstreams'], ['GET', '/admin/logs'],
      ['DELETE', `/admin/keys/${randomUUID()}`], ['POST', '/admin/reload']]) {
      test(`${what}: ${method} ${target.slice(0, 20)} is 403`, async () => {
        const token = what === 'a prefix' ? gateway.home.secrets.ADMIN_TOKEN.slice(0, -1) : key;
        const answer = await gateway.call(target, { method, key: token, headers });
        assert.equal(answer.status, 403);
        assert.deepEqual(json(answer), { detail: { error: 'forbidden', message: 'Admin access required' } });
      });
    }
  }
});

describe('upstreams', () => {
  let made;
  test('POST 201', async () => {
    const answer = await admin('POST', '/admin/upstreams', upstreamBody('first'));
    assert.equal(answer.status, 201, answer.text);
    made = json(answer);
    assert.match(made.id, UUID);
    assert.match(made.created_at, TIME);
    assert.deepEqual([made.name, made.provider, made.base_url, made.api_key_masked, made.is_default, made.timeout, made.is_active],
      ['first', 'openai', fake.base('first'), 'sk-***7890', false, 60, true]);
    assert.ok(!('api_key' in made) && !answer.text.includes('upstream-secret'));
  });

  test('POST 400 for a name that is taken', async () => {
    const answer = await admin('POST', '/admin/upstreams', upstreamBody('first'));
    assert.equal(answer.status, 400, answer.text);
  });

  for (const [what, change, field] of [['no name', { name: undefined }, 'name'], ['empty name', { name: '' }, 'name'],
    ['name of 65', { name: 'x'.repeat(65) }, 'name'], ['no base_url', { base_url: undefined }, 'base_url'],
    ['base_url not a URL', { base_url: 'nonsense' }, 'base_url'], ['no api_key', { api_key: undefined }, 'api_key'],
    ['empty api_key', { api_key: '' }, 'api_key'], ['timeout 0', { timeout: 0 }, 'timeout'], ['timeout 301', { timeout: 301 }, 'timeout'],
    ['is_default as text', { is_default: 'yes' }, 'is_default'], ['an unknown field', { surprise: 1 }, 'surprise']]) {
    test(`POST 422: ${what}`, async () => {
      const answer = await admin('POST', '/admin/upstreams', upstreamBody('bad', change));
      assert.equal(answer.status, 422, answer.text);
      const { detail } = json(answer);
      assert.ok(Array.isArray(detail), answer.text);
      const [one] = detail;
      assert.ok(Array.isArray(one.loc) && one.loc[0] === 'body' && one.loc.includes(field), answer.text);
      assert.equal(typeof one.msg, 'string');
      assert.equal(typeof one.type, 'string');
    });
  }

  test('malformed JSON is refused', async () => {
    const answer = await gateway.admin('/admin/upstreams', { method: 'POST', body: '{"name":', headers: { 'content-type': 'application/json' } });
    assert.ok([400, 422].includes(answer.status), answer.text);
    assert.ok(json(answer).detail);
  });

  test('GET pages, inactive included', async () => {
    await newUpstream('second');
    const list = json(await admin('GET', '/admin/upstreams?page=1&page_size=1'));
    assert.deepEqual([list.items.length, list.total, list.page, list.page_size, list.total_pages], [1, 2, 1, 1, 2]);
    for (const query of ['page=0', 'page_size=0', 'page_size=101', 'page=x'])
      assert.equal((await admin('GET', `/admin/upstreams?${query}`)).status, 422, query);
  });

  test('PUT changes what is given; one default only', async () => {
    const answer = await admin('PUT', `/admin/upstreams/${made.id}`, { is_default: true, api_key: 'new-key-abcdefgh' });
    assert.equal(answer.status, 200, answer.text);
    assert.deepEqual([json(answer).is_default, json(answer).api_key_masked, json(answer).name], [true, 'ne***efgh', 'first']);
    const second = await newUpstream('third', { is_default: true });
    const list = json(await admin('GET', '/admin/upstreams')).items;
    assert.deepEqual(list.filter((one) => one.is_default).map((one) => one.id), [second.id]);
  });

  test('each timer of an upstream can be set, and given back to the configuration', async () => {
    const timers = { connect_ms: 700, tls_ms: 800, first_byte_ms: 900, event_ms: 1000 };
    const pick = (one) => Object.fromEntries(Object.keys(timers).map((name) => [name, one[name]]));
    assert.deepEqual(pick(json(await admin('PUT', `/admin/upstreams/${made.id}`, timers))), timers);
    const list = json(await admin('GET', '/admin/upstreams')).items;
    assert.deepEqual(pick(list.find((one) => one.id === made.id)), timers);
    const answer = json(await admin('PUT', `/admin/upstreams/${made.id}`, { connect_ms: 0, tls_ms: 0, first_byte_ms: 0, event_ms: 0 }));
    assert.deepEqual(Object.values(pick(answer)), [0, 0, 0, 0]);
    assert.equal((await admin('PUT', `/admin/upstreams/${made.id}`, { event_ms: -1 })).status, 422);
  });

  test('PUT and DELETE 404, PUT 400 for a taken name', async () => {
    assert.equal((await admin('PUT', `/admin/upstreams/${randomUUID()}`, { timeout: 5 })).status, 404);
    assert.equal((await admin('DELETE', `/admin/upstreams/${randomUUID()}`)).status, 404);
    assert.equal((await admin('PUT', `/admin/upstreams/${made.id}`, { name: 'second' })).status, 400);
    assert.equal((await admin('PUT', '/admin/upstreams/no-uuid', { timeout: 5 })).status, 422);
  });

  test('DELETE is soft', async () => {
    const answer = await admin('DELETE', `/admin/upstreams/${made.id}`);
    assert.deepEqual([answer.status, answer.text], [204, '']);
    const list = json(await admin('GET', '/admin/upstreams')).items;
    assert.equal(list.find((one) => one.id === made.id).is_active, false);
    assert.equal(json(await admin('PUT', `/admin/upstreams/${made.id}`, { is_active: true })).is_active, true);
  });

  test('short and odd keys are masked', async () => {
    assert.equal((await newUpstream('short', { api_key: 'abc1234' })).api_key_masked, '***');
    assert.equal((await newUpstream('plain', { api_key: 'abcdefgh' })).api_key_masked, 'ab***efgh');
  });
});

describe('keys', () => {
  let upstream;
  before(async () => {
    upstream = await newUpstream('for-keys', { models: ['gpt-x'], priority: 5 });
  });

  test('POST 201: 51 characters, shown once', async () => {
    const answer = await admin('POST', '/admin/keys', { name: 'mine', description: 'd', upstream_ids: [upstream.id], expires_at: '2100-01-01T00:00:00Z' });
    assert.equal(answer.status, 201, answer.text);
    const key = json(answer);
    assert.match(key.key_value, /^sk-auto-[A-Za-z0-9_-]{43}$/);
    assert.equal(key.key_prefix, key.key_value.slice(0, 12));
    assert.match(key.id, UUID);
    assert.deepEqual([key.name, key.description, key.upstream_ids, key.is_active], ['mine', 'd', [upstream.id], true]);
    assert.equal(Date.parse(key.expires_at), Date.parse('2100-01-01T00:00:00Z'));
    const list = await admin('GET', '/admin/keys');
    assert.ok(!list.text.includes('key_value') && !list.text.includes(key.key_value));
    const row = json(list).items.find((one) => one.id === key.id);
    assert.deepEqual(Object.keys(row).sort(), ['created_at', 'description', 'expires_at', 'id', 'is_active', 'key_prefix', 'name', 'updated_at', 'upstream_ids']);
    assert.equal((await chat(key.key_value)).status, 200);
  });

  test('POST 400 for unknown upstreams, nothing is written', async () => {
    const unknown = randomUUID();
    const count = json(await admin('GET', '/admin/keys')).total;
    const answer = await admin('POST', '/admin/keys', { name: 'bad', upstream_ids: [upstream.id, unknown] });
    assert.equal(answer.status, 400, answer.text);
    const body = json(answer);
    const { error, message } = body.detail ?? body;
    assert.equal(error, 'invalid_request');
    assert.ok(message.startsWith('Invalid or inactive upstream IDs: [') && message.includes(unknown), message);
    assert.equal(json(await admin('GET', '/admin/keys')).total, count);
  });

  for (const [what, change] of [['no name', { name: undefined }], ['name of 256', { name: 'x'.repeat(256) }], ['no upstreams', { upstream_ids: [] }],
    ['not a UUID', { upstream_ids: ['x'] }], ['a bad time', { expires_at: 'tomorrow' }], ['an unknown field', { is_admin: true }]]) {
    test(`POST 422: ${what}`, async () => {
      const answer = await admin('POST', '/admin/keys', { name: 'n', upstream_ids: [upstream.id], ...change });
      assert.equal(answer.status, 422, answer.text);
      assert.ok(Array.isArray(json(answer).detail));
    });
  }

  test('GET: newest first, pages', async () => {
    for (let i = 0; i < 3; i++) await newKey([upstream], { name: `page-${i}` });
    const list = json(await admin('GET', '/admin/keys?page=1&page_size=3'));
    assert.deepEqual(list.items.map((one) => one.name), ['page-2', 'page-1', 'page-0']);
    assert.equal(list.total_pages, Math.ceil(list.total / 3));
    const beyond = json(await admin('GET', '/admin/keys?page=1000'));
    assert.deepEqual(beyond.items, []);
  });

  test('DELETE 204, and the very next call is 401 on every worker', async () => {
    const key = await newKey([upstream]);
    for (let i = 0; i < 6; i++) assert.equal((await chat(key.key_value)).status, 200);
    assert.equal((await admin('DELETE', `/admin/keys/${key.id}`)).status, 204);
    for (let i = 0; i < 12; i++) assert.equal((await chat(key.key_value)).status, 401);
    assert.equal((await admin('DELETE', `/admin/keys/${randomUUID()}`)).status, 404);
  });

  test('an expired key is 401', async () => {
    const key = await newKey([upstream], { expires_at: '2020-01-01T00:00:00Z' });
    if (key.key_value) assert.equal((await chat(key.key_value)).status, 401);
  });

  test('a key may use its upstreams only', async () => {
    const other = await newUpstream('other', { models: ['gpt-other'] });
    const key = await newKey([upstream]);
    assert.equal((await chat(key.key_value, 'gpt-other')).status, 403);
    assert.equal((await chat(key.key_value, 'gpt-x', { 'x-upstream-name': 'other' })).status, 403);
    assert.equal((await chat(key.key_value, 'gpt-x', { 'x-upstream-name': 'nowhere' })).status, 400);
    assert.equal((await chat(key.key_value, 'gpt-x', { 'x-upstream-name': 'for-keys' })).status, 200);
    await admin('DELETE', `/admin/upstreams/${upstream.id}`);
    assert.equal((await chat(key.key_value)).status, 503);
    assert.equal((await chat(key.key_value, 'gpt-x', { 'x-upstream-name': 'for-keys' })).status, 503);
    await admin('PUT', `/admin/upstreams/${upstream.id}`, { is_active: true });
    assert.equal((await chat(key.key_value)).status, 200);
    assert.ok(other.id);
  });
});

describe('what upstreams serve', () => {
  test('aliases are renamed on the way out', async () => {
    const upstream = await newUpstream('alias', { models: { 'nice-name': 'real-name-1' } });
    const { key_value } = await newKey([upstream]);
    await fake.script('alias', { echo: true });
    const seen = json(await chat(key_value, 'nice-name'));
    assert.equal(JSON.parse(seen.body).model, 'real-name-1');
  });

  test('base_url with and without /v1', async () => {
    const upstream = await newUpstream('with-v1', { base_url: `${fake.base('with-v1')}/v1`, models: ['gpt-v1'] });
    const { key_value } = await newKey([upstream]);
    await fake.script('with-v1', { echo: true });
    assert.equal(json(await chat(key_value, 'gpt-v1')).target, '/s/with-v1/v1/chat/completions');
  });

  test('priority goes before weight; weight shares', async () => {
    const high = await newUpstream('high', { models: ['gpt-order'], priority: 2, weight: 1 });
    const low = await newUpstream('low', { models: ['gpt-order'], priority: 1, weight: 1000 });
    const half = await newUpstream('half', { models: ['gpt-weight'], weight: 30 });
    const most = await newUpstream('most', { models: ['gpt-weight'], weight: 70 });
    const { key_value } = await newKey([high, low, half, most]);
    for (const one of [high, low, half, most]) await fake.script(one.name, { body: bodies.chatBody() });
    await fake.clear();
    for (let i = 0; i < 10; i++) await chat(key_value, 'gpt-order');
    assert.deepEqual([...new Set((await fake.requests()).map((one) => one.script))], ['high']);
    await fake.clear();
    for (let i = 0; i < 100; i++) await chat(key_value, 'gpt-weight');
    const share = (await fake.requests('most')).length;
    assert.ok(share > 45 && share < 92, `${share} of 100 went to the one with weight 70`);
  });

  test('a change of base_url serves at once', async () => {
    const upstream = await newUpstream('moved', { models: ['gpt-moved'] });
    const { key_value } = await newKey([upstream]);
    await fake.script('moved', { status: 404, body: bodies.openaiError('old place') });
    await fake.script('new-place', { body: bodies.chatBody() });
    assert.equal((await chat(key_value, 'gpt-moved')).status, 404);
    await admin('PUT', `/admin/upstreams/${upstream.id}`, { base_url: fake.base('new-place') });
    for (let i = 0; i < 6; i++) assert.equal((await chat(key_value, 'gpt-moved')).status, 200);
  });

  test('GET {prefix}/v1/upstreams', async () => {
    const upstream = await newUpstream('listed');
    const { key_value } = await newKey([upstream]);
    const answer = await gateway.call('/proxy/v1/upstreams', { key: key_value });
    assert.equal(answer.status, 200, answer.text);
    assert.deepEqual(json(answer).upstreams.map((one) => [one.name, one.provider]), [['listed', 'openai']]);
    const nobody = await gateway.call('/proxy/v1/upstreams');
    assert.deepEqual([nobody.status, json(nobody).detail.error], [401, 'missing_api_key']);
  });

  test('the proxy mount serves model calls', async () => {
    const upstream = await newUpstream('mounted', { models: ['gpt-mounted'] });
    const { key_value } = await newKey([upstream]);
    const answer = await gateway.call('/proxy/v1/chat/completions', { key: key_value, body: { model: 'gpt-mounted', messages: [] } });
    assert.equal(answer.status, 200, answer.text);
  });
});

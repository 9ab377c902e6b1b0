// Handshakes and errors as Claude Code and Codex meet them (their captured requests), over plain HTTP.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { call, events, json, raw } from './kit/http.mjs';
import { recordings, startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

let fake, gateway;
before(async () => {
  fake = await startFake();
  gateway = await startGateway();
  await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true,
    models: ['gpt-*'] });
  await gateway.upstream({ name: 'ant', provider: 'anthropic', base_url: fake.url,
    models: ['claude-*'] });
});
after(() => stopAll(gateway, fake));

const claudeHeaders = {
  'anthropic-version': '2023-06-01',
  'anthropic-beta': 'claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27',
  'anthropic-dangerous-direct-browser-access': 'true', 'x-app': 'cli',
  'user-agent': 'claude-cli/2.1.329 (external, sdk-cli)', 'x-claude-code-session-id': '0b0e8a4e-0000-4000-8000-000000000001',
  'accept-encoding': 'gzip, deflate, br, zstd',
};
// Captures are cut with an ellipsis, which no header may hold.
const sendable = (headers) => Object.fromEntries(Object.entries(headers)
  .map(([name, value]) => [name, value.replace(/[^\x20-\x7e]/g, '_')]));
const claudeBody = (model) => ({ model, stream: true, max_tokens: 32000, system: [{ type: 'text', text: 'Be brief.' }],
  messages: [{ role: 'system', content: 'inside' }, { role: 'user', content: 'say pong' }],
  metadata: { user_id: '{"device_id":"d"}' }, context_management: { edits: [] }, output_config: { effort: 'high' } });

describe('Claude Code', () => {
  for (const [method, target] of [['HEAD', '/api/hello'], ['GET', '/api/hello'], ['HEAD', '/'],
    ['HEAD', '/anthropic/api/hello'], ['HEAD', '/anthropic']]) {
    test(`${method} ${target} without a credential`, async () => {
      const answer = await gateway.call(target, { method, headers: { 'user-agent': 'Bun/1.4.4' } });
      assert.equal(answer.status, 200);
    });
  }

  for (const [name, credential] of [['bearer', (key) => ({ authorization: `Bearer ${key}` })],
    ['x-api-key', (key) => ({ 'x-api-key': key })], ['api-key', (key) => ({ 'api-key': key })]]) {
    test(`POST /v1/messages?beta=true with ${name}`, async () => {
      await fake.script('claude-code', { body: bodies.messagesStream() });
      await fake.clear();
      const answer = await gateway.call('/v1/messages?beta=true', { body: claudeBody('claude-code'),
        headers: { ...claudeHeaders, ...credential(gateway.key) } });
      assert.equal(answer.status, 200, answer.text);
      assert.equal(answer.text, bodies.messagesStream());
      assert.match(answer.headers['content-type'], /^text\/event-stream/);
      assert.equal(answer.headers['content-encoding'], undefined);
      const [seen] = await fake.requests('claude-code');
      assert.equal(seen.target, '/v1/messages?beta=true');
      assert.equal(seen.body, JSON.stringify(claudeBody('claude-code')));
      assert.equal(seen.header['anthropic-beta'], claudeHeaders['anthropic-beta']);
      assert.equal(seen.header['anthropic-version'], '2023-06-01');
      assert.equal(seen.header['accept-encoding'], undefined);
      assert.equal(seen.header['x-api-key'], 'sk-upstream-0123456789');
      assert.ok(!JSON.stringify(seen.headers).includes(gateway.key), 'the client key stays here');
    });
  }

  test('two credentials that differ are refused', async () => {
    const answer = await gateway.call('/v1/messages', { body: claudeBody('claude-code'),
      headers: { ...claudeHeaders, authorization: `Bearer ${gateway.key}`, 'x-api-key': 'other' } });
    assert.equal(answer.status, 401);
    const same = await gateway.call('/v1/models', { headers: { authorization: `Bearer ${gateway.key}`, 'x-api-key': gateway.key } });
    assert.equal(same.status, 200);
  });

  test('25 parallel count_tokens', async () => {
    await fake.script('claude-count', { body: { input_tokens: 8 } });
    const answers = await Promise.all(Array.from({ length: 25 }, () => gateway.call('/v1/messages/count_tokens?beta=true',
      { body: { model: 'claude-count', messages: [{ role: 'user', content: 'foo' }], tools: [] }, key: gateway.key, headers: claudeHeaders })));
    for (const answer of answers) assert.deepEqual([answer.status, json(answer)], [200, { input_tokens: 8 }]);
  });

  test('discovery: GET /v1/models?limit=1000 in the Claude shape', async () => {
    await gateway.upstream({ name: 'named', provider: 'anthropic', base_url: fake.url, models: ['claude-listed'] });
    const answer = await gateway.call('/v1/models?limit=1000', { key: gateway.key, headers: { 'anthropic-version': '2023-06-01' } });
    const list = json(answer);
    assert.equal(list.has_more, false);
    assert.ok(list.data.some((one) => one.id === 'claude-listed' && one.type === 'model' && one.created_at));
    const openai = json(await gateway.call('/v1/models', { key: gateway.key }));
    assert.equal(openai.object, 'list');
  });

  test('a captured request passes whole', { skip: existsSync(path.join(recordings, 'clients')) ? false : 'no captures' }, async () => {
    const capture = JSON.parse(readFileSync(path.join(recordings, 'clients/claude-code-2.1.329-auth-token.json'), 'utf8'));
    const post = capture.requests.find((one) => one.method === 'POST');
    const body = { ...post.body, model: 'claude-captured' };
    const { Host, 'Content-Length': _length, Authorization, Connection, ...headers } = post.headers;
    await fake.script('claude-captured', { body: bodies.messagesStream() });
    const answer = await gateway.call(post.url, { body, key: gateway.key, headers: sendable(headers) });
    assert.equal(answer.status, 200, answer.text);
    const [seen] = await fake.requests('claude-captured');
    assert.deepEqual(JSON.parse(seen.body), body);
  });
});

describe('Codex', () => {
  test('the WebSocket upgrade gets 426 at once, then POST streams', async () => {
    const upgrade = await raw(gateway.port, `GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:${gateway.port}\r\n` +
      'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n' +
      `authorization: Bearer ${gateway.key}\r\nopenai-beta: responses_websockets=2026-02-06\r\n` +
      'sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n\r\n', { stop: /\r\n\r\n/ });
    assert.match(upgrade.text, /^HTTP\/1\.1 426 /);
    await fake.script('gpt-codex', { body: bodies.responsesStream(), split: { size: 100 } });
    const answer = await gateway.call('/v1/responses', { key: gateway.key,
      headers: { accept: 'text/event-stream', originator: 'codex_exec', 'session-id': 's-1', 'thread-id': 't-1' },
      body: { model: 'gpt-codex', stream: true, store: false, input: [{ type: 'message', role: 'user', content: [{ type: 'input_text', text: 'say pong' }] }],
        tools: [{ type: 'function', name: 'exec_command' }, { type: 'namespace', name: 'multi' }, { type: 'web_search' }],
        include: ['reasoning.encrypted_content'] } });
    assert.equal(answer.status, 200, answer.text);
    assert.equal(answer.text, bodies.responsesStream());
  });

  test('a captured request passes whole', { skip: existsSync(path.join(recordings, 'clients')) ? false : 'no captures' }, async () => {
    const capture = JSON.parse(readFileSync(path.join(recordings, 'clients/codex-0.169.0-responses.json'), 'utf8'));
    const post = capture.requests.find((one) => one.method === 'POST');
    const body = { ...post.body, model: 'gpt-captured' };
    const { host, 'content-length': _length, authorization, connection, ...headers } = post.headers;
    await fake.script('gpt-captured', { body: bodies.responsesStream() });
    const answer = await gateway.call('/v1/responses', { body, key: gateway.key, headers: sendable(headers) });
    assert.equal(answer.status, 200, answer.text);
  });

  test('a broken stream ends with response.failed', async () => {
    await fake.script('gpt-cut', { body: bodies.responsesStream(['a'], { end: false }), framing: 'chunked', end: 'close' });
    const answer = await gateway.call('/v1/responses', { key: gateway.key, body: { model: 'gpt-cut', stream: true, input: 'x' } });
    const last = events(answer.text).filter((one) => one.data !== undefined).at(-1);
    assert.equal(last.event, 'response.failed');
    assert.equal(JSON.parse(last.data).response.status, 'failed');
    assert.ok(JSON.parse(last.data).response.error.code);
  });
});

describe('error contract', () => {
  const isOpenai = (answer) => { const { error } = json(answer); assert.equal(typeof error.message, 'string');
    assert.ok('type' in error && 'param' in error && 'code' in error, answer.text); return error; };
  const isClaude = (answer) => { const body = json(answer); assert.equal(body.type, 'error'); assert.equal(typeof body.error.type, 'string');
    assert.equal(typeof body.error.message, 'string'); assert.equal(body.request_id, answer.headers['request-id']); return body.error; };
  const hasIds = (answer) => { assert.ok(answer.headers['request-id']); assert.equal(answer.headers['x-request-id'], answer.headers['request-id']); };
  const cases = [
    ['no key', { key: null }, 401, 'false'],
    ['unknown key', { key: 'sk-auto-unknown' }, 401, 'false'],
    ['malformed JSON', { body: '{"model":' }, 400, 'false'],
    ['no model', { body: '{}' }, 400, 'false'],
    ['a duplicated model', { body: '{"model":"a","model":"b","messages":[]}' }, 400, 'false'],
    ['a case twin', { body: '{"model":"a","Model":"b","messages":[]}' }, 400, 'false'],
    ['unknown model', { body: '{"model":"nobody-serves-this","messages":[],"max_tokens":1}' }, 404, 'false'],
    ['compressed body', { body: '{"model":"gpt-x"}', headers: { 'content-encoding': 'gzip' } }, 415, 'false'],
  ];
  for (const [dialect, target, shape] of [['chat', '/v1/chat/completions', isOpenai], ['responses', '/v1/responses', isOpenai],
    ['claude', '/v1/messages', isClaude], ['claude mount', '/anthropic/v1/messages', isClaude], ['openai mount', '/openai/v1/chat/completions', isOpenai]]) {
    for (const [what, options, status, retry] of cases) {
      test(`${dialect}: ${what} → ${status}`, async () => {
        const answer = await gateway.call(target, { method: 'POST', body: '{"model":"gpt-x","messages":[]}', key: gateway.key, ...options,
          headers: { 'content-type': 'application/json', ...options.headers } });
        assert.equal(answer.status, status, answer.text);
        shape(answer);
        hasIds(answer);
        assert.equal(answer.headers['x-should-retry'], retry);
      });
    }
  }

  test('401: one text for unknown and missing keys', async () => {
    const texts = await Promise.all([undefined, 'sk-auto-unknown', `${gateway.key}x`].map(async (key) =>
      json(await gateway.call('/v1/chat/completions', { body: { model: 'gpt-x', messages: [] }, key })).error));
    assert.deepEqual(texts[0], texts[1]);
    assert.deepEqual(texts[1], texts[2]);
    assert.equal(texts[0].code, 'invalid_api_key');
  });

  test('429 brings retry-after in seconds and milliseconds', async () => {
    await fake.script('gpt-slow-down', { status: 429, headers: { 'retry-after': '7' },
      body: bodies.openaiError('Slow down.', { type: 'requests', code: 'rate_limit_exceeded' }) });
    const answer = await gateway.call('/v1/chat/completions', { key: gateway.key, body: { model: 'gpt-slow-down', messages: [] } });
    assert.equal(answer.status, 429);
    assert.equal(answer.headers['retry-after'], '7');
    assert.equal(answer.headers['retry-after-ms'], '7000');
    assert.equal(answer.headers['x-should-retry'], 'true');
  });

  test('503 of an overloaded upstream brings retry-after', async () => {
    await fake.script('claude-over', { status: 529, body: bodies.claudeError('Overloaded', 'overloaded_error') });
    const answer = await gateway.call('/v1/messages', { key: gateway.key, body: { model: 'claude-over', max_tokens: 1, messages: [] } });
    assert.equal(answer.status, 503);
    assert.ok(Number(answer.headers['retry-after']) >= 1);
    isClaude(answer);
  });

  test("the upstream's headers and cookies stay behind", async () => {
    await fake.script('gpt-headers', { body: bodies.chatBody(), headers: { 'set-cookie': 'a=b', server: 'secret',
      'x-ratelimit-remaining-requests': '1', 'openai-organization': 'org-1', 'openai-processing-ms': '17' } });
    const answer = await gateway.call('/v1/chat/completions', { key: gateway.key, body: { model: 'gpt-headers', messages: [] } });
    for (const name of ['set-cookie', 'server', 'x-ratelimit-remaining-requests', 'openai-organization'])
      assert.equal(answer.headers[name], undefined, name);
    assert.equal(answer.headers['openai-processing-ms'], '17');
  });

  for (const target of ['/v1/v1/chat/completions', '/v1/files', '/v1/nothing', '/v1/responses/resp_1', '/v1beta/models/x:generateContent']) {
    test(`${target} is a JSON 404`, async () => {
      const answer = await gateway.call(target, { key: gateway.key, method: target.includes('chat') ? 'POST' : 'GET',
        body: target.includes('chat') ? '{}' : undefined });
      assert.equal(answer.status, 404);
      assert.ok(json(answer).error || json(answer).detail, answer.text);
      if (target.startsWith('/v1/v1')) assert.match(answer.text, /\/v1\/chat\/completions/);
    });
  }

  test('GET on a POST route is 405 with Allow', async () => {
    const answer = await gateway.call('/v1/messages', { key: gateway.key });
    assert.equal(answer.status, 405);
    assert.match(answer.headers.allow, /POST/);
  });

  test("a client's x-request-id is echoed", async () => {
    const answer = await gateway.call('/v1/models', { key: gateway.key, headers: { 'x-request-id': 'mine-1' } });
    assert.equal(answer.headers['x-request-id'], 'mine-1');
  });

  test('HEAD and OPTIONS', async () => {
    assert.equal((await gateway.call('/v1/models', { method: 'HEAD', key: gateway.key })).status, 200);
    const options = await gateway.call('/v1/chat/completions', { method: 'OPTIONS', headers: { origin: 'https://example.org',
      'access-control-request-method': 'POST' } });
    assert.ok([200, 204].includes(options.status));
    assert.equal(options.headers['access-control-allow-origin'], undefined, 'no origin is allowed by default');
  });
});

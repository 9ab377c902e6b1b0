// Sizes, slow peers, uploads: what is bounded, what is streamed, what is refused and how.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import http from 'node:http';
import { readFileSync } from 'node:fs';
import { json, raw, sleep, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

const { chat } = bodies.dialects;
const MiB = 1 << 20;
let fake, gateway, upstream;
before(async () => {
  fake = await startFake();
  gateway = await startGateway({ conf: { timeouts: { client_header: 0.8, client_body: 0.8, client_write: 2 } } });
  upstream = await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true });
});
after(() => stopAll(gateway, fake));

const post = (model, more = {}) => gateway.call(chat.path, { key: gateway.key, body: chat.request(model, more.stream ?? false), ...more });
const rss = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${gateway.child.pid}/status`, 'utf8'))[1]) * 1024;
const rowOf = (model) => until(async () => json(await gateway.admin('/admin/logs?page_size=100')).items.find((row) => row.model === model), `row of ${model}`);

describe('sizes', () => {
  for (const [what, request, status] of [
    ['a target of 9 KiB', (key) => `GET /v1/models?x=${'a'.repeat(9000)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${key}\r\n\r\n`, 414],
    ['a header block of 40 KiB', (key) => `GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Big: ${'a'.repeat(40000)}\r\nAuthorization: Bearer ${key}\r\n\r\n`, 431],
    ['120 fields', (key) => `GET /v1/models HTTP/1.1\r\nHost: x\r\n${'X-A: b\r\n'.repeat(120)}Authorization: Bearer ${key}\r\n\r\n`, 431],
    ['no Host', () => 'GET /v1/models HTTP/1.1\r\n\r\n', 400],
    ['two Hosts', () => 'GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n', 400],
    ['CL and TE', () => 'POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400],
    ['TRACE', () => 'TRACE / HTTP/1.1\r\nHost: a\r\n\r\n', 405],
    ['a length over 32 MiB', (key) => `POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${key}\r\nContent-Type: application/json\r\nContent-Length: 33554433\r\n\r\n`, 413],
  ]) {
    test(`${what} → ${status}`, async () => {
      const answer = await raw(gateway.port, request(gateway.key), { stop: /\r\n\r\n[^]+\}/, ms: 3000 });
      const got = Number(/^HTTP\/1\.1 (\d+)/.exec(answer.text)?.[1]);
      if (what === 'TRACE') assert.ok([400, 405, 501].includes(got), answer.text);
      else assert.equal(got, status, answer.text);
    });
  }

  test('a body of 8 MiB passes', async () => {
    const body = { ...chat.request('echo', false), messages: [{ role: 'user', content: 'x'.repeat(8 * MiB) }] };
    const answer = await gateway.call(chat.path, { key: gateway.key, body });
    assert.equal(answer.status, 200);
    assert.equal(json(answer).body.length, JSON.stringify(body).length);
  });

  test('one event of 8 MiB passes; one of 17 MiB is a clear error', async () => {
    const big = (count) => chat.stream(['a', 'x'.repeat(count)]);
    await fake.script('gpt-big-event', { body: big(8 * MiB) });
    const answer = await post('gpt-big-event', { stream: true });
    assert.ok(answer.body.equals(Buffer.from(big(8 * MiB))));
    await fake.script('gpt-huge-event', { body: big(17 * MiB) });
    const huge = await post('gpt-huge-event', { stream: true });
    assert.ok(!chat.isCleanEnd(huge.text.slice(-3000)));
    assert.match(huge.text.slice(-3000), /"error"/);
  });

  test('a whole answer over 64 MiB is an error, not memory', async () => {
    await fake.script('gpt-huge-answer', { body: 'x'.repeat(MiB), body_repeat: 70 });
    const answer = await post('gpt-huge-answer');
    assert.equal(answer.status, 502);
  });
});

describe('slow peers', () => {
  test('a slow client head and a slow body are cut by their timers', async () => {
    const began = performance.now();
    const head = await raw(gateway.port, 'GET /v1/models HTTP/1.1\r\nHost: a\r\n', { ms: 5000 });
    assert.notEqual(head.how, 'timeout');
    assert.ok(performance.now() - began < 2500);
    const body = await raw(gateway.port, `POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\n` +
      'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"model"', { ms: 5000 });
    assert.notEqual(body.how, 'timeout');
  });

  test('a client that does not read: the upstream is paused, memory stays, then it is cut', async () => {
    const event = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: 'x'.repeat(60000) } }] })}\n\n`;
    await fake.script('gpt-flood', { body: event, repeat: true, framing: 'chunked' });
    await fake.clear();
    const before200 = rss();
    const stalled = Array.from({ length: 8 }, () => {
      const request = http.request(`${gateway.url}${chat.path}`, { method: 'POST', agent: false,
        headers: { authorization: `Bearer ${gateway.key}`, 'content-type': 'application/json' } }, (response) => response.pause());
      request.on('error', () => {});
      request.end(JSON.stringify(chat.request('gpt-flood')));
      return request;
    });
    await sleep(1000);
    const open = await fake.requests('gpt-flood');
    assert.equal(open.length, 8);
    assert.ok(rss() - before200 < 64 * MiB, `grew by ${((rss() - before200) / MiB).toFixed(1)} MiB`);
    await until(async () => (await fake.requests('gpt-flood')).every((one) => one.peer_closed), 'the cut of stalled clients', 8000);
    const sent = (await fake.requests('gpt-flood')).map((one) => one.sent);
    assert.ok(Math.max(...sent) < 40 * MiB, `an upstream was read for ${Math.max(...sent)} bytes`);
    for (const request of stalled) request.destroy();
  });

  test('a slow reader gets every byte', async () => {
    const text = chat.stream(Array.from({ length: 400 }, (_, i) => `${i}:${'y'.repeat(8000)}`));
    await fake.script('gpt-slow-reader', { body: text, split: { size: 16384 } });
    const bytes = await new Promise((resolve, reject) => {
      const parts = [];
      const request = http.request(`${gateway.url}${chat.path}`, { method: 'POST', agent: false, highWaterMark: 16384,
        headers: { authorization: `Bearer ${gateway.key}`, 'content-type': 'application/json' } }, (response) => {
        response.on('data', (part) => {
          parts.push(part);
          if (parts.length % 20 === 0) {
            response.pause();
            setTimeout(() => response.resume(), 10);
          }
        });
        response.on('end', () => resolve(Buffer.concat(parts)));
        response.on('error', reject);
      });
      request.on('error', reject);
      request.end(JSON.stringify(chat.request('gpt-slow-reader')));
    });
    assert.ok(bytes.equals(Buffer.from(text)));
  });

  test('100 streams at once, each whole', async () => {
    await fake.script('gpt-many', { body: chat.stream(), split: { size: 90 }, delay_ms: 20 });
    const answers = await Promise.all(Array.from({ length: 100 }, () => post('gpt-many', { stream: true })));
    for (const answer of answers) assert.equal(answer.text, chat.stream());
  });
});

describe('uploads', () => {
  const boundary = 'e2e-boundary';
  const form = (size, model = 'whisper-1') => Buffer.concat([
    Buffer.from(`--${boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n${model}\r\n--${boundary}\r\n` +
      'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'),
    Buffer.alloc(size, 0xee), Buffer.from(`\r\n--${boundary}--\r\n`)]);
  const send = (body, more) => gateway.call('/v1/audio/transcriptions', { key: gateway.key, body,
    headers: { 'content-type': `multipart/form-data; boundary=${boundary}`, ...more } });

  for (const [what, headers] of [['with a length', {}], ['chunked', { 'transfer-encoding': 'chunked' }]]) {
    test(`a form of 3 MiB passes unchanged, ${what}`, async () => {
      await fake.script('default', { body: { text: 'hello' } });
      await fake.clear();
      const body = form(3 * MiB);
      const answer = await send(body, headers);
      assert.deepEqual([answer.status, answer.text], [200, '{"text":"hello"}']);
      const [seen] = await fake.requests();
      assert.equal(seen.body_len, body.length);
      assert.equal(seen.target, '/v1/audio/transcriptions');
      assert.match(seen.header['content-type'], /boundary=e2e-boundary/);
      assert.equal((await rowOf('whisper-1')).status_code, 200);
    });
  }

  test('a form with the file first is routed too', async () => {
    await fake.script('default', { body: { text: 'hello' } });
    await fake.clear();
    const body = Buffer.concat([
      Buffer.from(`--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n`),
      Buffer.alloc(300 * 1024, 0xee),
      Buffer.from(`\r\n--${boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-late\r\n--${boundary}--\r\n`)]);
    const answer = await send(body);
    assert.deepEqual([answer.status, answer.text], [200, '{"text":"hello"}']);
    assert.equal((await fake.requests())[0].body_len, body.length);
    assert.equal((await rowOf('whisper-late')).status_code, 200);
  });

  test('an alias is replaced in the form, streamed or whole', async () => {
    await gateway.admin(`/admin/upstreams/${upstream.id}`, { method: 'PUT', body: { models: { 'my-ears': 'whisper-1-large', '*': '*' } } });
    await fake.script('default', { body: { text: 'hello' } });
    for (const size of [10, 3 * MiB]) {
      await fake.clear();
      assert.equal((await send(form(size, 'my-ears'))).status, 200);
      const [seen] = await fake.requests();
      assert.equal(seen.body_len, form(size, 'whisper-1-large').length);
      assert.equal(seen.how, 'done');
    }
    await gateway.admin(`/admin/upstreams/${upstream.id}`, { method: 'PUT', body: { models: ['*'] } });
  });

  test('without a model field it is refused', async () => {
    const answer = await send(Buffer.from(`--${boundary}\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--${boundary}--\r\n`));
    assert.equal(answer.status, 400, answer.text);
  });

  test('binary answers pass as they are', async () => {
    const bytes = Buffer.from(Array.from({ length: 5000 }, (_, i) => i % 256));
    await fake.script('tts-1', { headers: { 'content-type': 'audio/mpeg' }, body_base64: bytes.toString('base64'), framing: 'chunked', split: { size: 700 } });
    const answer = await gateway.call('/v1/audio/speech', { key: gateway.key, body: { model: 'tts-1', input: 'Hi', voice: 'a' } });
    assert.equal(answer.status, 200);
    assert.equal(answer.headers['content-type'], 'audio/mpeg');
    assert.ok(answer.body.equals(bytes));
  });

  test('a binary answer that is cut is cut for the client too', async () => {
    await fake.script('tts-cut', { headers: { 'content-type': 'audio/mpeg' }, body: 'x'.repeat(4000), framing: 'chunked', at: 2000, end: 'reset' });
    const answer = await gateway.call('/v1/audio/speech', { key: gateway.key, body: { model: 'tts-cut', input: 'Hi', voice: 'a' } });
    assert.equal(answer.ended, 'cut');
  });

  test('the client\'s Expect: 100-continue', async () => {
    const text = JSON.stringify(chat.request('echo', false));
    const answer = await raw(gateway.port, `POST ${chat.path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\nContent-Type: application/json\r\n` +
      `Expect: 100-continue\r\nContent-Length: ${text.length}\r\n\r\n`, { stop: /100 Continue\r\n\r\n/, ms: 2000 });
    assert.equal(answer.how, 'matched', answer.text);
    const refused = await raw(gateway.port, `POST ${chat.path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer nobody\r\nContent-Type: application/json\r\n` +
      `Expect: 100-continue\r\nContent-Length: ${text.length}\r\n\r\n`, { stop: /401/, ms: 2000 });
    assert.ok(!refused.text.includes('100 Continue'), 'nobody is asked to send what is refused anyway');
  });

  test('pipelined requests are answered in order', async () => {
    const one = (id) => `GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\nX-Request-Id: ${id}\r\n\r\n`;
    const answer = await raw(gateway.port, one('p-1') + one('p-2') + one('p-3'), { stop: /p-3[^]*\]\}/, ms: 3000 });
    const ids = [...answer.text.matchAll(/^x-request-id: (p-\d)/gmi)].map((match) => match[1]);
    assert.deepEqual(ids, ['p-1', 'p-2', 'p-3']);
  });
});

describe('routes with state', () => {
  test('404 unless the upstream passes all', async () => {
    assert.equal((await gateway.call('/v1/files', { key: gateway.key })).status, 404);
    await gateway.admin(`/admin/upstreams/${upstream.id}`, { method: 'PUT', body: { passthrough: 'all' } });
    await fake.script('default', { body: { object: 'list', data: [] } });
    await fake.clear();
    const answer = await gateway.call('/v1/files?limit=3', { key: gateway.key });
    assert.deepEqual([answer.status, answer.text], [200, '{"object":"list","data":[]}']);
    assert.equal((await fake.requests())[0].target, '/v1/files?limit=3');
  });
});

describe('disconnect = drain', () => {
  test('the upstream is read on for the true usage', async () => {
    await gateway.admin(`/admin/upstreams/${upstream.id}`, { method: 'PUT', body: { disconnect: 'drain' } });
    await fake.script('gpt-drain', { body: chat.stream(), split: { size: 200 }, delay_ms: 60 });
    await post('gpt-drain', { stream: true, onChunk: (text, request) => request.destroy() }).catch(() => {});
    const row = await rowOf('gpt-drain');
    assert.deepEqual([row.status_code, row.prompt_tokens, row.completion_tokens], [499, 12, 5]);
    const [seen] = await fake.requests('gpt-drain');
    assert.equal(seen.how, 'done');
  });
});

// One row per exchange, whatever its end; nothing secret in anything that is written.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { json, sleep, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

const UPSTREAM_KEY = 'sk-canary-upstream-5e7b1c9d';
let fake, gateway, upstream;
before(async () => {
  fake = await startFake();
  gateway = await startGateway();
  upstream = await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.base('up'), is_default: true,
    models: ['gpt-*'], api_key: UPSTREAM_KEY });
  await gateway.upstream({ name: 'backup', provider: 'openai', base_url: fake.base('backup'), models: ['gpt-pair'], priority: -1,
    api_key: UPSTREAM_KEY });
});
after(() => stopAll(gateway, fake));

const post = (model, more = {}) => gateway.call('/v1/chat/completions', { key: gateway.key,
  body: { model, stream: more.stream ?? false, messages: [{ role: 'user', content: 'canary-prompt-1f2e' }] }, ...more });
const rowsOf = async (model) => json(await gateway.admin('/admin/logs?page_size=100')).items.filter((row) => row.model === model);
const oneRow = async (model) => {
  await until(async () => (await rowsOf(model)).length > 0, `a row for ${model}`);
  await sleep(50); // a second one would be there by now
  const rows = await rowsOf(model);
  assert.equal(rows.length, 1, JSON.stringify(rows));
  return rows[0];
};

describe('one row', () => {
  test('ok, whole; readable 200 ms after the last byte', async () => {
    await fake.script('up', { body: bodies.chatBody() });
    const answer = await post('gpt-ok');
    assert.equal(answer.status, 200);
    await until(async () => (await rowsOf('gpt-ok')).length === 1, 'the row', 250);
    const row = await oneRow('gpt-ok');
    assert.deepEqual([row.status_code, row.prompt_tokens, row.completion_tokens, row.total_tokens], [200, 12, 5, 17]);
    assert.deepEqual([row.method, row.path, row.upstream_id, row.error_message], ['POST', '/v1/chat/completions', upstream.id, null]);
    assert.ok(row.api_key_id && row.duration_ms >= 0 && Date.parse(row.created_at) > 0);
    const line = await gateway.access(answer);
    assert.deepEqual(line.tokens, { input: 8, cache_read: 4, cache_write: 0, output: 3, reasoning: 2 });
    assert.equal(line.finish_reason, 'stop');
  });

  test('ok, streamed, with time to first token', async () => {
    await fake.script('up', { body: bodies.chatStream(), split: { size: 150 }, delay_ms: 10 });
    const answer = await post('gpt-ok-stream', { stream: true });
    const row = await oneRow('gpt-ok-stream');
    assert.deepEqual([row.status_code, row.total_tokens], [200, 17]);
    const line = await gateway.access(answer);
    assert.equal(line.stream, true);
    assert.ok(line.ttft_ms > 0 && line.ttft_ms <= line.dur_ms, `${line.ttft_ms} of ${line.dur_ms}`);
  });

  test('estimated when the upstream tells no usage', async () => {
    await fake.script('up', { body: bodies.chatStream(['x'.repeat(400)], { usage: false }) });
    const answer = await post('gpt-estimate', { stream: true });
    const row = await oneRow('gpt-estimate');
    assert.ok(row.completion_tokens > 50 && row.prompt_tokens > 0, JSON.stringify(row));
    assert.match((await gateway.access(answer)).flags, /estimated/);
  });

  test('404 of an unknown model', async () => {
    await post('nobody-has-this');
    const row = await oneRow('nobody-has-this');
    assert.deepEqual([row.status_code, row.total_tokens, row.upstream_id], [404, 0, null]);
    assert.ok(row.error_message);
  });

  test('refused: 401', async () => {
    const answer = await post('gpt-refused', { key: 'sk-auto-nobody' });
    assert.equal(answer.status, 401);
    const line = await gateway.access(answer);
    assert.equal(line.status, 401);
    await until(async () => json(await gateway.admin('/admin/logs?status_code=401')).items.length > 0, 'a row with 401');
    const [row] = json(await gateway.admin('/admin/logs?status_code=401')).items;
    assert.equal(row.api_key_id, null);
  });

  test('client gone in the stream: 499 with what was produced', async () => {
    await fake.script('up', { body: bodies.chatStream(['word '.repeat(50)], { end: false }), end: 'hang' });
    await post('gpt-gone', { stream: true, onChunk: (text, request) => request.destroy() }).catch(() => {});
    const row = await oneRow('gpt-gone');
    assert.equal(row.status_code, 499);
    assert.ok(row.completion_tokens > 0 && row.prompt_tokens > 0, JSON.stringify(row));
    const line = await gateway.access((one) => one.model_requested === 'gpt-gone');
    assert.equal(line.attempts.length, 1);
  });

  test('client gone before the answer', async () => {
    await fake.script('up', { end: 'hang', at: -2 });
    await post('gpt-gone-early', { leaveMs: 200 }).catch(() => {});
    const row = await oneRow('gpt-gone-early');
    assert.deepEqual([row.status_code, row.completion_tokens], [499, 0]);
  });

  test('upstream cut', async () => {
    await fake.script('up', { body: bodies.chatStream(['word '.repeat(50)], { end: false }), framing: 'chunked', end: 'close' });
    await post('gpt-cut', { stream: true });
    const row = await oneRow('gpt-cut');
    assert.ok(row.error_message, JSON.stringify(row));
    assert.ok(row.completion_tokens > 0);
  });

  test('attempts of a failover', async () => {
    await fake.script('up', { status: 500, body: {} });
    await fake.script('backup', { body: bodies.chatBody() });
    const answer = await post('gpt-pair');
    assert.equal(answer.status, 200);
    const { attempts, flags } = await gateway.access(answer);
    assert.deepEqual(attempts.map((one) => one.status), [500, 200]);
    assert.match(flags, /failover/);
    assert.equal((await oneRow('gpt-pair')).total_tokens, 17);
    await fake.script('up', { body: bodies.chatBody() });
    await post('gpt-mend');
  });

  test('a model that a plugin answers', async () => {
    await gateway.call('/v1/chat/completions', { key: gateway.key, body: { model: 'demo', messages: [{ role: 'user', content: 'a b c' }] } });
    const row = await oneRow('demo');
    assert.deepEqual([row.status_code, row.upstream_id], [200, null]);
    assert.ok(row.completion_tokens > 0);
  });

  test('absurd usage is no credit', async () => {
    await fake.script('up', { body: { ...bodies.chatBody(), usage: { prompt_tokens: -5, completion_tokens: 1e300, total_tokens: 'x' } } });
    const answer = await post('gpt-absurd');
    assert.equal(answer.status, 200);
    const row = await oneRow('gpt-absurd');
    for (const field of ['prompt_tokens', 'completion_tokens', 'total_tokens'])
      assert.ok(row[field] >= 0 && row[field] < 1e6, `${field} ${row[field]}`);
  });
});

describe('filters', () => {
  test('page, key, upstream, status, time', async () => {
    const list = async (query) => json(await gateway.admin(`/admin/logs?${query}`));
    const all = await list('page_size=5');
    assert.equal(all.items.length, 5);
    assert.equal(all.total_pages, Math.ceil(all.total / 5));
    const times = all.items.map((row) => row.created_at);
    assert.deepEqual(times, times.toSorted().reverse(), 'newest first');
    assert.ok((await list('status_code=404')).items.every((row) => row.status_code === 404));
    assert.ok((await list(`upstream_id=${upstream.id}`)).items.every((row) => row.upstream_id === upstream.id));
    assert.equal((await list('start_time=2100-01-01T00:00:00Z')).total, 0);
    assert.equal((await list('end_time=2000-01-01T00:00:00Z')).total, 0);
    const bad = await gateway.admin('/admin/logs?start_time=yesterday');
    assert.equal(bad.status, 400);
    assert.ok(bad.text.includes('Invalid start_time format: yesterday'), bad.text);
  });
});

describe('secrets', () => {
  test('the canaries are nowhere', async () => {
    // An upstream that tells the key it was given, in a body, a header, and a stream's error.
    const leak = `Incorrect API key provided: ${UPSTREAM_KEY}`;
    const said = [];
    for (const step of [{ status: 401, body: bodies.openaiError(leak) }, { status: 400, body: bodies.openaiError(leak) }, { status: 400, body: bodies.openaiError('bad'), headers: { 'x-key': UPSTREAM_KEY } },
      { status: 500, body: leak }, { body: bodies.chatErrorFirst(leak) }]) {
      await fake.script('up', step);
      const answer = await post('gpt-leak', { stream: true });
      said.push(answer.text, JSON.stringify(answer.headers));
      await gateway.access(answer);
    }
    await fake.script('up', { body: bodies.chatBody() });
    for (const target of ['/admin/upstreams', '/admin/keys', '/admin/logs', '/admin/info', '/admin/plugins'])
      said.push((await gateway.admin(target)).text);
    said.push((await gateway.call('/metrics')).text, gateway.cli('config', 'dump').out, gateway.cli('key', 'list').out,
      gateway.cli('upstream', 'list').out, gateway.out.text, gateway.err.text);
    const canaries = { 'the upstream key': UPSTREAM_KEY, 'the client key': gateway.key, ...gateway.home.secrets };
    for (const [name, canary] of Object.entries(canaries)) {
      for (const text of said) assert.ok(!text.includes(canary), `${name} in: ${text.slice(Math.max(0, text.indexOf(canary) - 200), text.indexOf(canary))}`);
      assert.deepEqual(gateway.filesWith(canary), [], `${name} in files`);
    }
    assert.deepEqual(gateway.filesWith('canary-prompt-1f2e'), [], 'prompts in files');
    assert.ok(!gateway.err.text.includes('canary-prompt-1f2e'), 'prompts in logs');
  });
});

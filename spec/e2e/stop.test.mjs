// SIGTERM drains, a second one ends; what was written survives a restart and a kill.
import http from 'node:http';
import { after, before, beforeEach, afterEach, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { call, events, json, sleep, until } from './kit/http.mjs';
import { makeHome, startFake, startGateway } from './kit/kit.mjs';
import { dialects } from './kit/bodies.mjs';

let fake, gateway;
before(async () => { fake = await startFake(); });
after(() => fake.stop());

async function start(conf = {}) {
  const home = makeHome({ conf });
  const one = await startGateway({ home });
  for (const provider of ['openai', 'anthropic']) {
    await one.upstream({ name: provider, provider, base_url: fake.url, models: [`${provider}-*`] });
  }
  return one;
}

describe('SIGTERM', () => {
  beforeEach(async () => { gateway = await start({ drain_timeout: 1.5 }); });
  afterEach(async () => { await gateway.stop(); });

  const stream = (dialect, onChunk) => gateway.call(dialect.path, { key: gateway.key, onChunk,
    body: dialect.request(`${dialect.provider}-stop`) });

  test('a running stream ends whole, new connections are refused, exit 0', async () => {
    const dialect = dialects.chat;
    await fake.script('openai-stop', { body: dialect.stream(), split: { size: 200 }, delay_ms: 80 });
    let seen = false;
    const running = stream(dialect, () => { seen = true; });
    await until(() => seen, 'the first chunk');
    gateway.signal('SIGTERM');
    await until(async () => (await gateway.call('/healthz').catch(() => null)) === null, 'a refused connection', 2000);
    const answer = await running;
    assert.equal(answer.text, dialect.stream());
    assert.equal(answer.ended, 'clean');
    const { code } = await gateway.child.exited;
    assert.equal(code, 0);
  });

  test('an idle connection gets a moment: what comes within it is answered, and is the last', async () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const ask = () => gateway.call('/healthz', { agent });
    assert.notEqual((await ask()).headers.connection, 'close');
    gateway.signal('SIGTERM');
    await until(() => gateway.logs('draining').length === 1, 'the drain');
    await sleep(300);
    const answer = await ask(); // an agent takes the connection it has
    assert.equal(answer.status, 200);
    assert.equal(answer.headers.connection, 'close');
    assert.equal((await gateway.child.exited).code, 0);
    agent.destroy();
  });

  for (const [name, dialect] of Object.entries(dialects)) {
    test(`${name}: a stream longer than drain_timeout ends with an error in the dialect`, async () => {
      await fake.script(`${dialect.provider}-stop`, { body: dialect.stream(['a'], { end: false }), framing: 'chunked', end: 'hang' });
      let seen = false;
      const running = stream(dialect, () => { seen = true; });
      await until(() => seen, 'the first chunk');
      gateway.signal('SIGTERM');
      const began = performance.now();
      const answer = await running;
      assert.ok(performance.now() - began > 1000, 'it was given its time');
      assert.ok(!dialect.isCleanEnd(answer.text), answer.text.slice(-300));
      assert.ok(dialect.streamError(events(answer.text)), answer.text.slice(-500));
      assert.equal((await gateway.child.exited).code, 0);
    });
  }

  test('a second SIGTERM ends at once', async () => {
    await fake.script('openai-stop', { body: dialects.chat.stream(['a'], { end: false }), framing: 'chunked', end: 'hang' });
    let seen = false;
    const running = stream(dialects.chat, () => { seen = true; }).catch((error) => error);
    await until(() => seen, 'the first chunk');
    gateway.signal('SIGTERM');
    await sleep(200);
    const began = performance.now();
    gateway.signal('SIGTERM');
    const { code } = await gateway.child.exited;
    assert.ok(performance.now() - began < 1000, 'within a second');
    assert.equal(code, 0);
    await running;
  });
});

describe('restart', () => {
  test('keys, upstreams and logs are there again; a kill loses nothing that was acknowledged', async () => {
    const first = await start();
    const dialect = dialects.chat;
    await fake.script('openai-x', { body: dialect.body() });
    const ask = (one, key) => one.call(dialect.path, { key, body: dialect.request('openai-x', false) });
    const answer = await ask(first, first.key);
    assert.equal(answer.status, 200, answer.text);
    await until(async () => json(await first.admin('/admin/logs')).total === 1, 'the row');
    first.signal('SIGKILL');
    await first.child.exited;
    const second = await startGateway({ home: first.home, key: false });
    assert.equal((await ask(second, first.key)).status, 200);
    await until(async () => json(await second.admin('/admin/logs')).total === 2, 'both rows');
    await second.stop();
  });

  test('a second gateway on the same data is refused', async () => {
    const first = await start();
    await assert.rejects(startGateway({ home: first.home, key: false }), /did not start \(1\)/);
    assert.equal((await first.call('/healthz')).status, 200);
    const health = first.cli('health');
    assert.equal(health.code, 0, `the first one's control socket still works: ${health.err}`);
    await first.stop();
  });
});

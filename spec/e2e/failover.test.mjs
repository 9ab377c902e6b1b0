// What happens when an upstream fails: another one answers before the first content, nobody after it;
// a stream that was cut never ends as if it was whole.
import { after, before, beforeEach, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import net from 'node:net';
import { events, json, sleep, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import { dialects } from './kit/bodies.mjs';

// A port on loopback where nobody listens.
async function deadPort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.on('listening', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

let fake, gateway;
const ask = (dialect, model, { stream = true, ...more } = {}) => gateway.call(dialect.path,
  { key: gateway.key, body: dialect.request(model, stream), ...more });

before(async () => {
  fake = await startFake();
  gateway = await startGateway({ conf: { hold_head: 0.3, keepalive: 0.3,
    timeouts: { event: 1.2, first_byte_stream: 1.5, first_byte: 1.5, connect: 1 } } });
  const dead = `http://127.0.0.1:${await deadPort()}`;
  for (const provider of ['openai', 'anthropic']) {
    const made = (name, models, base_url, priority) =>
      gateway.upstream({ name: `${provider}-${name}`, provider, base_url, models, priority });
    const p = provider === 'openai' ? 'o' : 'a';
    await made('one', [`${p}-pair`, `${p}-solo`, `${p}-hold`], fake.base(`${p}1`), 10);
    await made('two', [`${p}-pair`, `${p}-dead`], fake.base(`${p}2`), 0);
    await made('dead', [`${p}-dead`, `${p}-gone`], dead, 10);
  }
});
after(() => stopAll(gateway, fake));
beforeEach(() => fake.clear());

const attemptsOf = async (answer) => (await gateway.access(answer)).attempts;

for (const [name, dialect] of Object.entries(dialects)) {
  const p = dialect.provider === 'openai' ? 'o' : 'a';
  const pair = `${p}-pair`, solo = `${p}-solo`, first = `${p}1`, second = `${p}2`;
  const good = () => fake.script(second, [{ body: dialect.stream() }]);

  describe(name, () => {
    // Cooling of the first upstream must not hide what is tested: a call that works mends it.
    beforeEach(async () => {
      await fake.script(first, { body: dialect.body() });
      await until(async () => {
        const answer = await ask(dialect, solo, { stream: false });
        return answer.status === 200;
      }, 'a healthy first upstream');
      await fake.clear();
    });

    test('connect refused: the second upstream answers', async () => {
      await good();
      const answer = await ask(dialect, `${p}-dead`);
      assert.equal(answer.status, 200, answer.text);
      assert.equal(answer.text, dialect.stream());
      const attempts = await attemptsOf(answer);
      // A cooling upstream may have gone last.
      if (attempts.length === 2) assert.equal(attempts[0].status, 0);
      assert.equal(attempts.at(-1).reason, 'ok');
    });

    for (const [what, step] of [
      ['429 with Retry-After', { status: 429, headers: { 'retry-after': '1' }, body: dialect.upstreamError('slow down') }],
      ['500', { status: 500, body: dialect.upstreamError('broken') }],
      ['503 with an HTML body', { status: 503, headers: { 'content-type': 'text/html' }, body: '<h1>Bad</h1>' }],
      ['our key refused', { status: 401, body: dialect.upstreamError('bad key') }],
      ['reset without an answer', { end: 'reset', at: -2 }],
      ['garbage instead of HTTP', { raw: 'SSH-2.0-nonsense\r\n\r\n' }],
      ['an error as the first event', { body: dialect.errorFirst() }],
      ['200 with a JSON error for a stream', { body: dialect.upstreamError('not today', name === 'messages' ? 'api_error' : 'server_error') }],
      ['an empty 200 stream', { headers: { 'content-type': 'text/event-stream' }, body: '', framing: 'chunked' }],
      ['a head and then a reset', { body: dialect.stream(), framing: 'chunked', at: 0, end: 'reset' }],
      ['no first byte in time', { end: 'hang', at: -2 }],
      ['huge headers', { headers: { 'x-big': 'x'.repeat(200000) }, body: dialect.stream() }],
      ['endless 1xx', { informational: -1 }],
    ]) {
      test(`${what}: the second upstream answers with one clean stream`, async () => {
        await fake.script(first, step);
        await good();
        const answer = await ask(dialect, pair);
        assert.equal(answer.status, 200, answer.text.slice(0, 500));
        assert.equal(answer.text.replaceAll(': keepalive\n\n', ''), dialect.stream());
        assert.equal(answer.ended, 'clean');
        const line = await gateway.access(answer);
        assert.equal(line.attempts.length, 2, JSON.stringify(line.attempts));
        assert.equal(line.attempts[1].reason, 'ok');
        assert.equal(line.upstream, `${dialect.provider}-two`);
        const posts = await fake.requests();
        assert.deepEqual(posts.map((one) => one.script), [first, second], 'one POST each');
      });
    }

    test('400 is the client\'s fault: no second try', async () => {
      await fake.script(first, { status: 400, body: dialect.upstreamError('bad field') });
      await good();
      const answer = await ask(dialect, pair);
      assert.equal(answer.status, 400);
      assert.equal(answer.text, JSON.stringify(dialect.upstreamError('bad field')));
      assert.equal((await fake.requests()).length, 1);
    });

    test('all fail: one error in the dialect', async () => {
      await fake.script(first, { status: 500, body: 'oops', headers: { 'content-type': 'text/plain' } });
      await fake.script(second, { end: 'reset', at: -2 });
      const answer = await ask(dialect, pair);
      assert.equal(answer.status, 502, answer.text);
      assert.ok(dialect.isError(json(answer)), answer.text);
      const gone = await ask(dialect, `${p}-gone`);
      assert.equal(gone.status, 502, gone.text);
      assert.ok(dialect.isError(json(gone)), gone.text);
    });

    for (const [what, step] of [
      ['closed', { framing: 'chunked', end: 'close' }],
      ['reset', { framing: 'chunked', end: 'reset' }],
      ['closed without a length', { framing: 'close' }],
      ['short of its Content-Length', { framing: 'length', length: 100000 }],
      ['silent', { framing: 'chunked', end: 'hang' }],
      ['closed, though the last chunk came', { framing: 'chunked' }],
      ['a malformed chunk', null],
    ]) {
      test(`after content nothing is retried, and no false end: ${what}`, async () => {
        const body = dialect.stream(['Hel', 'lo '], { end: false });
        await fake.script(first, step ? { body, ...step } : {
          raw: `HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n` +
            `${Buffer.byteLength(body).toString(16)}\r\n${body}\r\nnot-a-size\r\n\r\n` });
        await good();
        const answer = await ask(dialect, pair);
        assert.equal(answer.status, 200, answer.text);
        assert.ok(answer.text.replaceAll(': keepalive\n\n', '').startsWith(body), answer.text);
        assert.ok(!dialect.isCleanEnd(answer.text), `no made-up end:\n${answer.text.slice(-500)}`);
        assert.ok(dialect.streamError(events(answer.text)), `an error in the dialect:\n${answer.text.slice(-500)}`);
        assert.equal((await fake.requests()).length, 1);
        const line = await gateway.access(answer);
        assert.equal(line.attempts.length, 1);
        assert.notEqual(line.error_class, undefined);
        assert.match(line.flags, /cut/);
      });
    }

    test('cut inside an event: the error is an event of its own', async () => {
      const body = dialect.stream(['Hello', 'this is a longer text'], { end: false });
      await fake.script(first, { body, framing: 'chunked', at: body.length - 25, end: 'close' });
      const answer = await ask(dialect, solo);
      assert.ok(!dialect.isCleanEnd(answer.text));
      const last = events(answer.text).filter((one) => one.data !== undefined).at(-1);
      assert.doesNotThrow(() => JSON.parse(last.data), last.data);
      assert.ok(dialect.streamError([last]));
    });

    test('a whole answer that is cut is retried, then a 502', async () => {
      await fake.script(first, { body: dialect.body(), at: 30, end: 'reset' });
      await fake.script(second, { body: dialect.body() });
      const answer = await ask(dialect, pair, { stream: false });
      assert.equal(answer.status, 200, answer.text);
      assert.deepEqual(json(answer), dialect.body());
      const alone = await ask(dialect, solo, { stream: false });
      assert.equal(alone.status, 502, alone.text);
      assert.ok(dialect.isError(json(alone)));
    });

    test('a slow start: head and comments after hold_head, then the stream', async () => {
      await fake.script(first, { body: dialect.stream(), first_ms: 900 });
      const answer = await ask(dialect, solo, { timed: true });
      assert.equal(answer.status, 200);
      assert.ok(answer.headMs > 200 && answer.headMs < 700, `head after ${answer.headMs} ms`);
      const comments = answer.text.match(/^: keepalive$/mg) ?? [];
      assert.ok(comments.length >= 2, `${comments.length} comments`);
      assert.equal(answer.text.replaceAll(': keepalive\n\n', ''), dialect.stream());
    });

    test('failover behind the comments, before the first event', async () => {
      await fake.script(first, { status: 500, body: 'late', first_ms: 600 });
      await good();
      const answer = await ask(dialect, pair);
      assert.equal(answer.status, 200);
      assert.match(answer.text, /^: keepalive/);
      assert.equal(answer.text.replaceAll(': keepalive\n\n', ''), dialect.stream());
    });

    test('an error behind the comments is told in the stream', async () => {
      await fake.script(first, { status: 500, body: 'late', first_ms: 600 });
      const answer = await ask(dialect, solo);
      assert.equal(answer.status, 200);
      assert.ok(!dialect.isCleanEnd(answer.text));
      assert.ok(dialect.streamError(events(answer.text)), answer.text);
    });

    test('comments stand between events only', async () => {
      const body = dialect.stream();
      await fake.script(first, { body, framing: 'chunked', split: { at: [Math.floor(body.length / 2) - 7] }, delay_ms: 800 });
      const answer = await ask(dialect, solo);
      assert.equal(answer.text.replaceAll(': keepalive\n\n', ''), body);
      for (const block of answer.text.split('\n\n'))
        assert.ok(!block.includes('\n: keepalive') && !/.: keepalive/.test(block), `comment inside an event: ${block}`);
    });

    test('events leave in the turn they came', async () => {
      const parts = dialect.stream().split('\n\n').slice(0, -1).map((part) => `${part}\n\n`);
      let at = 0;
      const cuts = parts.map((part) => (at += Buffer.byteLength(part))).slice(0, -1);
      await fake.script(first, { body: dialect.stream(), framing: 'chunked', split: { at: cuts }, delay_ms: 40 });
      const answer = await ask(dialect, solo, { timed: true });
      assert.equal(answer.text, dialect.stream());
      assert.ok(answer.chunks.length >= parts.length - 3, `${answer.chunks.length} writes for ${parts.length} events`);
      assert.ok(answer.chunks.at(-1).ms - answer.chunks[0].ms > 40 * (parts.length - 5), 'spread over time');
    });

    test('the client leaves before the answer: the upstream is left too', async () => {
      await fake.script(first, { end: 'hang', at: -2 });
      await ask(dialect, solo, { leaveMs: 150 }).catch(() => {});
      await until(async () => (await fake.requests()).find((one) => one.peer_closed), 'cancel', 1000);
    });
  });
}

test('a failing upstream cools down, its traffic goes to the other', async () => {
  await fake.script('o1', { status: 429, headers: { 'retry-after': '2' }, body: dialects.chat.upstreamError('slow') });
  await fake.script('o2', { body: dialects.chat.stream() });
  assert.equal((await ask(dialects.chat, 'o-pair')).status, 200);
  await fake.clear();
  assert.equal((await ask(dialects.chat, 'o-pair')).status, 200);
  assert.deepEqual((await fake.requests()).map((one) => one.script), ['o2'], 'the cooling one is not asked');
  // The last usable candidate is always tried.
  assert.equal((await ask(dialects.chat, 'o-solo')).status, 429);
  await sleep(2200);
  await fake.script('o1', { body: dialects.chat.stream() });
  await fake.clear();
  assert.equal((await ask(dialects.chat, 'o-pair')).status, 200);
  assert.deepEqual((await fake.requests()).map((one) => one.script), ['o1'], 'after Retry-After it is asked again');
});

test('a POST on a reused connection that closes unanswered is not repeated silently', async () => {
  await fake.script('o1', [{ body: dialects.chat.body() }, { end: 'close', at: -2 }]);
  assert.equal((await ask(dialects.chat, 'o-solo', { stream: false })).status, 200);
  await fake.clear();
  const answer = await ask(dialects.chat, 'o-solo', { stream: false });
  const posts = await fake.requests('o1');
  const attempts = await attemptsOf(answer);
  assert.equal(posts.length, attempts.length, 'every POST that was served is an attempt in the log');
});

// Clients that misbehave: leave at every stage, by FIN and by RST, close one half, flood, stop reading.
// The upstream is left within 100 ms; then nothing more is open than before.
import { after, afterEach, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import net from 'node:net';
import { json, sleep, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import { backToBase, census, monotonicMs, SLACK_MS, startProxy } from './kit/proxy.mjs';
import { dialects } from './kit/bodies.mjs';

const LEAVE_MS = 100; // for the upstream to be left, and what the machine takes
const TIMES = 6;
const MiB = 1 << 20;
const { chat } = dialects;

let fake, proxy, gateway, base, full;
before(async () => {
  fake = await startFake();
  proxy = await startProxy();
  full = await proxy.gate(fake.port);
  await full.state('full');
  gateway = await startGateway({ conf: { hold_head: 0.2, keepalive: 0.2, timeouts: { client_write: 0.7, client_body: 5,
    client_header: 5, connect: 10 } } });
  await gateway.upstream({ name: 'openai', base_url: fake.url, is_default: true });
  await gateway.upstream({ name: 'claude', provider: 'anthropic', base_url: fake.url });
  await gateway.upstream({ name: 'full', base_url: full.url, models: ['bad-full'], priority: 10 });
  // Pools and buffers that stay are there before the base is taken.
  await fake.script('warm', { body: chat.stream(), split: { size: 100 }, delay_ms: 5 });
  await Promise.all(Array.from({ length: 40 }, () => gateway.call(chat.path, { key: gateway.key, body: chat.request('warm') })));
  await Promise.all(Array.from({ length: 40 }, () => gateway.call(chat.path, { key: gateway.key, body: chat.request('bad-full'), leaveMs: 100 }).catch(() => {})));
  await settled();
  base = await census(gateway, fake);
});
after(() => stopAll(gateway, proxy, fake));

// --- one client on a raw socket

const requestText = (dialect, model, more = {}) => {
  const body = JSON.stringify({ ...dialect.request(model, true), ...more });
  return { body, head: `POST ${dialect.path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\n` +
    `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n` };
};

const clientsOfTest = new Set();
afterEach(() => { // a test that failed must not spoil the others' base
  for (const one of clientsOfTest) one.socket.destroy();
  clientsOfTest.clear();
});

class Client {
  constructor() {
    clientsOfTest.add(this);
    this.text = '';
    this.isOver = false;
    this.socket = net.connect({ port: gateway.port, host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
    this.socket.on('data', (bytes) => { this.text += bytes.toString('latin1'); this.onText?.(); });
    this.socket.on('error', () => {});
    this.socket.on('end', () => { this.isOver = true; });
    this.socket.on('close', () => { this.isOver = true; });
    this.ready = new Promise((resolve) => this.socket.once('connect', resolve));
  }

  async send(text) {
    await this.ready;
    await new Promise((resolve) => this.socket.write(text, resolve));
  }

  seen(pattern) {
    return until(() => pattern.test(this.text), `${pattern} in ${JSON.stringify(this.text.slice(-200))}`);
  }

  // → when it left
  leave(how) {
    if (how === 'rst') this.socket.resetAndDestroy();
    else if (how === 'half') this.socket.end();
    else this.socket.destroy();
    return monotonicMs();
  }
}

const entriesOf = (model) => fake.requests(model);
const inflight = async () => Number(/^moongate_http_inflight_requests (\d+)$/m.exec((await gateway.call('/metrics')).text)[1]);

async function settled() {
  await until(async () => (await inflight()) === 0, 'no exchange in flight', 3000);
}

// --- leaving at every stage

for (const how of ['fin', 'rst', 'half']) {
  describe(`leaving by ${how}`, () => {
    test('before a byte, in the request line, in the head', async () => {
      const { head } = requestText(chat, 'bad-none');
      for (const part of ['', 'PO', head.slice(0, 30), head.slice(0, -2)]) {
        const clients = Array.from({ length: TIMES }, () => new Client());
        await Promise.all(clients.map((one) => one.send(part)));
        for (const one of clients) one.leave(how);
        if (how === 'half') await until(() => clients.every((one) => one.isOver), 'its end');
      }
      await backToBase(gateway, fake, base);
    });

    test('in the body: no upstream is asked', async () => {
      await fake.clear();
      const clients = Array.from({ length: TIMES }, () => new Client());
      await Promise.all(clients.map(async (one, i) => {
        const { head, body } = requestText(chat, 'bad-body', { padding: 'x'.repeat(i * 100000) });
        await one.send(head + body.slice(0, -10));
        await sleep(20);
        one.leave(how);
      }));
      await backToBase(gateway, fake, base);
      assert.equal((await fake.requests()).length, 0);
    });

    test('while the upstream is being connected', async () => {
      const clients = Array.from({ length: TIMES }, () => new Client());
      await Promise.all(clients.map((one) => {
        const { head, body } = requestText(chat, 'bad-full');
        return one.send(head + body);
      }));
      await until(async () => (await inflight()) === TIMES, 'the calls in flight');
      const left = Math.max(...clients.map((one) => one.leave(how)));
      await settled();
      assert.ok(monotonicMs() - left <= LEAVE_MS + SLACK_MS, `ended after ${monotonicMs() - left} ms`);
      await backToBase(gateway, fake, base);
    });

    for (const [name, dialect] of Object.entries(dialects)) {
      const stages = [
        ['while the upstream thinks', { end: 'hang', at: -2 }, async (one, entry) => entry()],
        ['behind the keep-alive head', { end: 'hang', at: -2 }, (one) => one.seen(/: keepalive/)],
        ['after the head of the upstream', { body: dialect.stream(), framing: 'chunked', at: 0, end: 'hang' }, async (one, entry) => entry()],
        ['amid the stream', { body: dialect.stream(), framing: 'chunked', split: { size: 120 }, delay_ms: 60 }, (one) => one.seen(/Hel/)],
        ['inside an event', { body: dialect.stream(), framing: 'chunked', at: dialect.stream().indexOf('there.') + 3, end: 'hang' }, (one) => one.seen(/the/)],
      ];
      for (const [what, step, ready] of stages) {
        // Where a dialect makes no difference, one of them is enough.
        if (name !== 'chat' && (how !== 'rst' || !/amid|behind/.test(what))) continue;
        test(`${what}: the upstream is left at once (${name})`, async () => {
          const model = `bad-${name}-${how}-${stages.findIndex(([one]) => one === what)}`;
          await fake.script(model, step);
          await fake.clear();
          const clients = Array.from({ length: TIMES }, () => new Client());
          await Promise.all(clients.map((one) => {
            const { head, body } = requestText(dialect, model);
            return one.send(head + body);
          }));
          const entry = () => until(async () => (await entriesOf(model)).length === TIMES, 'the upstream\'s calls');
          await Promise.all(clients.map((one) => ready(one, entry)));
          await entry();
          const left = Math.max(...clients.map((one) => one.leave(how)));
          await until(async () => (await entriesOf(model)).every((one) => one.how !== 'open'), 'the end of the upstream\'s calls', 3000);
          const ends = await entriesOf(model);
          assert.equal(ends.length, TIMES, 'no call was made twice');
          assert.ok(ends.every((one) => one.peer_closed), JSON.stringify(ends.map((one) => one.how)));
          const last = Math.max(...ends.map((one) => one.ended_ms)) - left;
          assert.ok(last <= LEAVE_MS + SLACK_MS, `the upstream was left after ${last} ms`);
          await backToBase(gateway, fake, base);
        });
      }
    }

    test('at the very end: whole for the upstream, one row', async () => {
      await fake.script('bad-end', { body: chat.stream() });
      await fake.clear();
      const clients = Array.from({ length: TIMES }, () => new Client());
      await Promise.all(clients.map(async (one) => {
        const { head, body } = requestText(chat, 'bad-end');
        await one.send(head + body);
        await one.seen(/\[DONE\]/);
        one.leave(how);
      }));
      await until(async () => (await entriesOf('bad-end')).filter((one) => one.how === 'done').length === TIMES, 'whole answers');
      await backToBase(gateway, fake, base);
    });
  });
}

// --- floods

describe('floods', () => {
  test('400 pipelined requests are answered in order', async () => {
    const one = new Client();
    const count = 400;
    await one.ready;
    one.socket.write(Array.from({ length: count }, (_, i) => `GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\nX-Request-Id: f-${i}\r\n\r\n`).join(''));
    await until(() => one.text.match(/HTTP\/1\.1 200/g)?.length === count, 'all answers');
    const ids = [...one.text.matchAll(/\nx-request-id: f-(\d+)/gi)].map((match) => Number(match[1]));
    assert.deepEqual(ids, Array.from({ length: count }, (_, i) => i));
    one.leave('fin');
  });

  test('a flood of requests behind a stream is not read ahead, and goes with its client', async () => {
    await fake.script('bad-flood', { end: 'hang', at: -2 });
    await fake.clear();
    const one = new Client();
    const { head, body } = requestText(chat, 'bad-flood');
    await one.send(head + body);
    await until(async () => (await entriesOf('bad-flood')).length === 1, 'the call');
    let taken = 0;
    const flood = `${head}${body}`.repeat(200);
    const goesOn = () => {
      while (!one.socket.destroyed && taken < 16 * MiB && one.socket.write(flood)) taken += flood.length;
      if (taken < 16 * MiB) one.socket.once('drain', goesOn);
    };
    goesOn();
    await sleep(200);
    assert.ok(taken < 16 * MiB, `${taken} bytes were taken`);
    assert.equal((await entriesOf('bad-flood')).length, 1, 'one at a time');
    const left = one.leave('rst');
    const [entry] = await until(async () => {
      const list = await entriesOf('bad-flood');
      return list[0].peer_closed && list;
    }, 'its end');
    assert.ok(entry.ended_ms - left <= LEAVE_MS + SLACK_MS, `${entry.ended_ms - left} ms`);
    assert.equal((await entriesOf('bad-flood')).length, 1);
    await backToBase(gateway, fake, base);
  });

  test('300 slow heads do not hold up the others, and are closed', async () => {
    const slow = Array.from({ length: 300 }, () => new Client());
    await Promise.all(slow.map((one) => one.send('GET /v1/models HT')));
    const began = performance.now();
    for (let i = 0; i < 20; i++) assert.equal((await gateway.call('/v1/models', { key: gateway.key })).status, 200);
    assert.ok(performance.now() - began < 1000 + SLACK_MS, `20 calls took ${performance.now() - began} ms`);
    for (const one of slow) one.leave('rst');
    await backToBase(gateway, fake, base);
  });

  test('600 clients that leave at any time (seeded): all is given back, one row each', async () => {
    await fake.script('bad-any', { body: chat.stream(), split: { size: 150 }, delay_ms: 8 });
    let state = 20261120;
    const random = (below) => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return Math.floor(state / 4294967296 * below);
    };
    let left = 600;
    const client = async () => {
      while (left-- > 0) {
        const one = new Client();
        const { head, body } = requestText(chat, 'bad-any');
        const text = head + body, part = random(3) === 0 ? random(text.length) : text.length;
        const wait = random(120), how = ['fin', 'rst', 'half'][random(3)];
        await one.send(text.slice(0, part));
        await sleep(wait);
        one.leave(how);
        if (how === 'half') setTimeout(() => one.socket.destroy(), 200);
      }
    };
    await Promise.all(Array.from({ length: 30 }, client));
    await backToBase(gateway, fake, base, 5000);
    const lines = () => gateway.logs('access').filter((line) => line.exchange && line.route !== '/v1/models');
    const rows = async () => json(await gateway.admin('/admin/logs?page_size=1')).total;
    await until(async () => await rows() === lines().length, 'the rows', 5000).catch(async () => assert.fail(`${await rows()} rows for ${lines().length} lines`));
    assert.equal(new Set(lines().map((line) => line.exchange)).size, lines().length);
    const served = await fake.requests('bad-any');
    const attempts = lines().filter((line) => line.model_requested === 'bad-any').reduce((sum, line) => sum + line.attempts.length, 0);
    assert.ok(served.length <= attempts, `${served.length} POSTs, ${attempts} attempts`);
  });
});

// --- readers

describe('readers', () => {
  const event = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: 'x'.repeat(60000) } }] })}\n\n`;

  test('20 that stop: paused, others unharmed, cut by the write timer, all given back', async () => {
    await fake.script('bad-stop', { body: event, repeat: true, framing: 'chunked' });
    await fake.script('good', { body: chat.stream() });
    await fake.clear();
    const slow = await Promise.all(Array.from({ length: 20 }, async () => {
      const one = new Client();
      const { head, body } = requestText(chat, 'bad-stop');
      await one.send(head + body);
      await one.seen(/xxxx/);
      one.socket.pause();
      return one;
    }));
    await sleep(250); // the kernel's buffers fill
    const sentBy = async () => (await entriesOf('bad-stop')).reduce((sum, one) => sum + one.sent, 0);
    const answers = await Promise.all(Array.from({ length: 10 }, () => gateway.call(chat.path, { key: gateway.key, body: chat.request('good') })));
    for (const answer of answers) assert.equal(answer.text, chat.stream());
    await until(async () => (await entriesOf('bad-stop')).every((one) => one.peer_closed), 'the cuts', 6000);
    assert.ok(await sentBy() < 20 * 24 * MiB, `${await sentBy()} bytes were read of the upstream`);
    for (const one of slow) one.leave('fin');
    await backToBase(gateway, fake, base);
    const rows = await until(() => {
      const lines = gateway.logs('access').filter((line) => line.model_requested === 'bad-stop');
      return lines.length >= 20 && lines;
    }, 'the lines of all');
    assert.equal(rows.length, 20);
    for (const row of rows) assert.equal(row.status, 499);
  });

  test('one that stops and leaves while paused: the upstream is left at once', async () => {
    for (const how of ['fin', 'rst']) {
      const model = `bad-paused-${how}`;
      await fake.script(model, { body: event, repeat: true, framing: 'chunked' });
      const one = new Client();
      const { head, body } = requestText(chat, model);
      await one.send(head + body);
      await one.seen(/xxxx/);
      one.socket.pause();
      await sleep(200);
      const left = one.leave(how);
      const [entry] = await until(async () => {
        const list = await entriesOf(model);
        return list[0].peer_closed && list;
      }, 'its end');
      assert.ok(entry.ended_ms - left <= LEAVE_MS + SLACK_MS, `${how}: ${entry.ended_ms - left} ms`);
    }
    await backToBase(gateway, fake, base);
  });
});

describe('afterwards', () => {
  test('all works as before', async () => {
    await fake.script('good', { body: chat.stream() });
    const answer = await gateway.call(chat.path, { key: gateway.key, body: chat.request('good') });
    assert.equal(answer.text, chat.stream());
    await backToBase(gateway, fake, base);
    assert.equal((await census(gateway, fake)).forgotten, 0);
  });
});

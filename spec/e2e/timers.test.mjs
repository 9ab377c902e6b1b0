// Every timer in every phase, measured: ±10 % and what the machine takes for itself. In each dialect:
// the right status before the head, the right error in the stream after it, another upstream where one
// may still be asked, one POST and one row each.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import http from 'node:http';
import net from 'node:net';
import { events, json, sleep, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import { isSlowBuild, monotonicMs, SLACK_MS, startProxy } from './kit/proxy.mjs';
import { dialects } from './kit/bodies.mjs';

const CONNECT = 200, TLS = 260, FIRST = 320, EVENT = 240; // of each upstream
const HOLD = 300, KEEPALIVE = 200; // of the gateway that opens its heads early
const HEADER = 300, BODY = 350, KEEP = 450, WRITE = 500; // of clients

let fake, proxy, gateway, early, full, deaf, mute, silent, stalled, drip, unread;

// An upstream of its own for each case, so that no cool-down of another is seen; the configuration
// brings them, as it can set their timers. base: its URL if not the fake's, known when all runs.
const wanted = [];
function upstreams(dialect, { base, early: isEarly = false, ...fields } = {}) {
  const name = `t${wanted.length + 1}`;
  wanted.push({ name, dialect, base, isEarly, fields });
  return name;
}
const listOf = (isEarly) => wanted.filter((one) => one.isEarly === isEarly).flatMap(({ name, dialect, base, fields }) => [
  { name: `${name}-one`, provider: dialect.provider, api_key: 'sk-upstream-0123456789', models: [`${name}-solo`, `${name}-pair`],
    base_url: base?.() ?? fake.base(`${name}-bad`), priority: 10,
    connect_ms: CONNECT, tls_ms: TLS, first_byte_ms: FIRST, event_ms: EVENT, ...fields },
  { name: `${name}-two`, provider: dialect.provider, api_key: 'sk-upstream-0123456789', models: [`${name}-pair`],
    base_url: fake.base(`${name}-good`), priority: 0 }]);

before(async () => {
  fake = await startFake();
  proxy = await startProxy();
  full = await proxy.gate(fake.port);
  deaf = await proxy.gate(fake.port);
  await full.state('full');
  await deaf.state('deaf');
  mute = await proxy.gate(fake.port, 'mute');
  // The beginning of a ServerHello's record, and no more.
  stalled = await proxy.gate(fake.port, 'answer=160303007a02000076,hang');
  silent = await proxy.gate(fake.port, 'answer=,hang');
  drip = await proxy.gate(fake.port, 'down.slice=1,60');
  unread = await proxy.gate(fake.port, 'up.timeout=1000');
  const conf = (isEarly, more) => ({ conf: { hold_head: 20, keepalive: 20, timeouts: { client_header: HEADER / 1000,
    client_body: BODY / 1000, client_keep_alive: KEEP / 1000, client_write: WRITE / 1000 }, upstreams: listOf(isEarly),
    ...more } });
  gateway = await startGateway(conf(false));
  early = await startGateway(conf(true, { hold_head: HOLD / 1000, keepalive: KEEPALIVE / 1000 }));
  for (const { name, dialect } of wanted) await fake.script(`${name}-good`, { body: dialect.stream() });
});
after(() => stopAll(early, gateway, proxy, fake));

// Not before the timer, nor (but for the machine's share) later than a tenth more. Too early is wrong
// at once; too late may be the machine's doing, so a test that was late is tried again, twice.
class Late extends Error {}

function assertTook(ms, wanted, what, more = 0) {
  assert.ok(ms >= wanted * 0.9 - 2, `${what}: ${ms.toFixed(0)} ms is before the timer of ${wanted}`);
  if (ms > wanted * 1.1 + SLACK_MS + more) throw new Late(`${what}: ${ms.toFixed(0)} ms is long after the timer of ${wanted}`);
}

const measured = (name, run) => test(name, async () => {
  for (let tries = 1;; tries++) {
    try {
      return await run();
    } catch (error) {
      if (!(error instanceof Late) || tries === 3) throw error;
    }
  }
});

const ask = (dialect, model, { stream = true, via = gateway, ...more } = {}) => via.call(dialect.path,
  { key: via.key, body: dialect.request(model, stream), timed: true, ...more });

// Places in a stream: [what, byte where it stops].
function places(dialect) {
  const text = dialect.stream(), content = text.indexOf('Hel'), end = text.indexOf('\n\n', content) + 2;
  const last = dialect.path.endsWith('messages') ? 'event: message_stop'
    : dialect.path.endsWith('responses') ? 'event: response.completed' : 'data: [DONE]';
  return { text, preamble: text.indexOf('\n\n') + 2, half: content + 1, border: end, within: end + 20, last: text.indexOf(last) };
}

for (const [name, dialect] of Object.entries(dialects)) {
  describe(`before the head: ${name}`, { concurrency: 10 }, () => {
    const at = places(dialect);
    const cases = [
      ['connecting hangs', () => full.url, null, CONNECT],
      ['accepted by the kernel only', () => deaf.url, null, FIRST],
      ['accepted, never answered', () => mute.url, null, FIRST],
      ['TLS: no answer to the hello', () => silent.url.replace('http:', 'https:'), null, TLS],
      ['TLS: stalled in the handshake', () => stalled.url.replace('http:', 'https:'), null, TLS],
      ['TLS: nobody accepts', () => deaf.url.replace('http:', 'https:'), null, TLS],
      ['a part of the status line', null, { raw: 'HTTP/1.1 2', end: 'hang' }, FIRST],
      ['a part of the head', null, { raw: 'HTTP/1.1 200 OK\r\ncontent-type: text/', end: 'hang' }, FIRST],
      ['a 103, then nothing', null, { raw: 'HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n', end: 'hang' }, FIRST],
      ['the head, then nothing', null, { body: at.text, framing: 'chunked', at: 0, end: 'hang' }, EVENT],
      ['the preamble, then nothing', null, { body: at.text, framing: 'chunked', at: at.preamble, end: 'hang' }, EVENT],
      ['half of the first event', null, { body: at.text, framing: 'chunked', at: 9, end: 'hang' }, EVENT],
    ];
    for (const [what, url, step, timer] of cases) {
      const model = upstreams(dialect, { base: url });
      measured(`${what}: 504 in the dialect, and the second upstream answers`, async () => {
        if (step) await fake.script(`${model}-bad`, step);
        const asked = (await fake.requests(`${model}-bad`)).length;
        const alone = await ask(dialect, `${model}-solo`);
        assert.equal(alone.status, 504, alone.text);
        assert.ok(dialect.isError(json(alone)), alone.text);
        assertTook(alone.headMs, timer, 'the answer');
        const line = await gateway.access(alone);
        assert.equal(line.attempts.length, 1);
        assert.equal(line.error_class, 'upstream_timeout');
        assertTook(line.attempts[0].ms, timer, 'the attempt');
        const pair = await ask(dialect, `${model}-pair`);
        assert.equal(pair.status, 200, pair.text);
        assert.equal(pair.text, dialect.stream());
        const { attempts } = await gateway.access(pair);
        // After a failure the other one may have gone first.
        assert.equal(attempts.at(-1).reason, 'ok');
        if (attempts.length > 1) {
          assertTook(attempts[0].ms, timer, 'the first attempt');
          assertTook(pair.headMs, timer, 'the second one\'s answer');
        }
        if (step) assert.equal((await fake.requests(`${model}-bad`)).length - asked, attempts.length, 'each attempt is one POST');
      });
    }

    for (const [what, step, timer] of [
      ['never answered', { end: 'hang', at: -2 }, FIRST],
      ['cut short by silence', { body: dialect.body(), framing: 'chunked', at: 40, end: 'hang' }, EVENT],
      ['a length that never comes', { body: dialect.body(), length: 5000, end: 'hang' }, EVENT],
    ]) {
      const model = upstreams(dialect);
      measured(`a whole answer, ${what}: 504`, async () => {
        await fake.script(`${model}-bad`, step);
        await fake.script(`${model}-good`, { body: dialect.body() });
        const alone = await ask(dialect, `${model}-solo`, { stream: false });
        assert.equal(alone.status, 504, alone.text);
        assert.ok(dialect.isError(json(alone)), alone.text);
        assertTook(alone.headMs, timer, 'the answer');
        const pair = await ask(dialect, `${model}-pair`, { stream: false });
        assert.deepEqual(json(pair), dialect.body());
      });
    }

    const slow = upstreams(dialect, { base: () => drip.base(`slow-${name}`) });
    measured('a status line at one byte per 60 ms is cut by the first-byte timer', async () => {
      await fake.script(`slow-${name}`, { body: dialect.stream() });
      const answer = await ask(dialect, `${slow}-solo`);
      assert.equal(answer.status, 504, answer.text);
      assertTook(answer.headMs, FIRST, 'the answer');
    });
  });

  describe(`in the stream: ${name}`, { concurrency: 10 }, () => {
    const at = places(dialect);
    for (const [what, stop] of [['inside an event', at.half], ['between events', at.border],
      ['inside a later event', at.within], ['after the last event before the end', at.last]]) {
      for (const [how, step] of [['chunked', { framing: 'chunked' }], ['with a length', { framing: 'length' }]]) {
        const model = upstreams(dialect);
        measured(`silence ${what} (${how}): an error in the stream, one POST`, async () => {
          await fake.script(`${model}-bad`, { body: at.text, at: stop, end: 'hang', ...step });
          const asked = (await fake.requests(`${model}-bad`)).length;
          const answer = await ask(dialect, `${model}-pair`);
          assert.equal(answer.status, 200, answer.text);
          const sent = at.text.slice(0, stop);
          // Of half an event no meaning is known; in chat nothing came before it: another one is asked.
          const isSeen = stop > at.half || name !== 'chat';
          if (!isSeen) {
            assert.equal(answer.text, dialect.stream());
            assert.equal((await gateway.access(answer)).attempts.length, 2);
            return;
          }
          assert.ok(answer.text.startsWith(sent), answer.text);
          const rest = answer.text.slice(sent.length);
          assert.ok(!/\[DONE\]|message_stop|response\.completed|"finish_reason":"|"stop_reason":"/.test(rest), `no made-up end: ${rest}`);
          assert.ok(dialect.streamError(events(rest.startsWith('\n\n') ? rest.slice(2) : rest)), `an error: ${rest}`);
          assert.equal(answer.ended, 'clean');
          assertTook(answer.ms - answer.chunks[0].ms, EVENT, 'the error');
          const line = await gateway.access(answer);
          assert.equal(line.attempts.length, 1);
          assert.match(line.flags, /cut/);
          assertTook(line.attempts[0].ms, EVENT, 'the attempt');
          assert.equal((await fake.requests(`${model}-bad`)).length - asked, 1);
          assert.equal((await fake.requests(`${model}-good`)).length, 0, 'no second call after content');
        });
      }
    }

    const over = upstreams(dialect);
    measured('silence after the stream\'s own end: a clean end', async () => {
      await fake.script(`${over}-bad`, { body: at.text, framing: 'chunked', at: at.text.length, end: 'hang' });
      const answer = await ask(dialect, `${over}-solo`);
      assert.equal(answer.text, at.text);
      assert.equal(answer.ended, 'clean');
      if (answer.ms > EVENT * 1.1 + SLACK_MS + 50) throw new Late(`${answer.ms} ms`);
    });

    const moves = upstreams(dialect);
    test('no limit on a stream that moves', async () => {
      await fake.script(`${moves}-bad`, { body: at.text, framing: 'chunked', split: { size: Math.floor(at.text.length / 18) }, delay_ms: Math.floor(EVENT * 0.3) });
      const answer = await ask(dialect, `${moves}-solo`);
      assert.equal(answer.text, at.text);
      assert.ok(answer.ms > CONNECT + TLS + FIRST + EVENT, `longer than all timers: ${answer.ms} ms`);
    });
  });

  describe(`heads held and comments: ${name}`, { concurrency: 6 }, () => {
    const held = upstreams(dialect, { early: true, first_byte_ms: 5000 });
    measured('the head after hold_head, comments after each silence, then the stream', async () => {
      await fake.script(`${held}-bad`, { body: dialect.stream(), first_ms: 1000 });
      const answer = await ask(dialect, `${held}-solo`, { via: early });
      assertTook(answer.headMs, HOLD, 'the head');
      const comments = answer.chunks.filter((one) => one.text === ': keepalive\n\n').map((one) => one.ms);
      assert.ok(answer.text.match(/^: keepalive$/mg)?.length >= 3, answer.text);
      for (let i = 1; i < comments.length; i++) {
        const gap = comments[i] - comments[i - 1];
        assert.ok(gap >= KEEPALIVE * 0.5, `a comment after ${gap} ms`);
        if (gap > KEEPALIVE * 1.1 + SLACK_MS) throw new Late(`a comment after ${gap} ms`);
      }
      assert.equal(answer.text.replaceAll(': keepalive\n\n', ''), dialect.stream());
    });

    const pauses = upstreams(dialect, { early: true, event_ms: 5000 });
    test('comments in a stream that pauses, none inside an event', async () => {
      const at = places(dialect);
      await fake.script(`${pauses}-bad`, { body: at.text, framing: 'chunked', split: { at: [at.border, at.within] }, delay_ms: 700 });
      const answer = await ask(dialect, `${pauses}-solo`, { via: early });
      assert.equal(answer.text.replaceAll(': keepalive\n\n', ''), at.text);
      const comments = answer.text.match(/^: keepalive$/mg) ?? [];
      assert.ok(comments.length >= 2, `${comments.length} comments`);
      for (const block of answer.text.split('\n\n')) assert.ok(!/.: keepalive/.test(block) && !block.includes('\n: keepalive'));
    });

    const behind = upstreams(dialect, { early: true, first_byte_ms: 600 });
    measured('the first-byte timer behind an open head: another upstream, else an error in the stream', async () => {
      await fake.script(`${behind}-bad`, { end: 'hang', at: -2 });
      const alone = await ask(dialect, `${behind}-solo`, { via: early });
      assert.equal(alone.status, 200);
      assertTook(alone.ms, 600, 'the end');
      assert.ok(dialect.streamError(events(alone.text)), alone.text);
      assert.ok(!dialect.isCleanEnd(alone.text));
      const pair = await ask(dialect, `${behind}-pair`, { via: early });
      assert.equal(pair.text.replaceAll(': keepalive\n\n', ''), dialect.stream());
    });
  });
}

describe('other settings of timers', { concurrency: 4 }, () => {
  const { chat } = dialects;
  const patient = upstreams(chat, { first_byte_ms: 0 });
  for (const [seconds, ms] of [['1', 1000], ['0.5', 500]]) {
    measured(`x-stainless-timeout ${seconds} is the patience for a whole answer`, async () => {
      await fake.script(`${patient}-bad`, { end: 'hang', at: -2 });
      const answer = await ask(chat, `${patient}-solo`, { stream: false, headers: { 'x-stainless-timeout': seconds } });
      assert.equal(answer.status, 504, answer.text);
      assertTook(answer.headMs, ms, 'the answer');
    });
  }

  const second = upstreams(chat, { first_byte_ms: 0, timeout: 1 });
  measured('`timeout` of an upstream replaces the first-byte timer', async () => {
    await fake.script(`${second}-bad`, { end: 'hang', at: -2 });
    const answer = await ask(chat, `${second}-solo`);
    assert.equal(answer.status, 504, answer.text);
    assertTook(answer.headMs, 1000, 'the answer');
  });

  const stuck = upstreams(chat, { base: () => unread.base('never') });
  measured('an upstream that does not read an upload is cut by the idle timer', async () => {
    const body = { ...chat.request(`${stuck}-solo`, false), messages: [{ role: 'user', content: 'x'.repeat(12 << 20) }] };
    const answer = await gateway.call(chat.path, { key: gateway.key, body });
    assert.equal(answer.status, 504, answer.text);
    assertTook((await gateway.access(answer)).attempts[0].ms, EVENT, 'the attempt');
  });
});

describe('clients', { concurrency: 10 }, () => {
  // Writes pieces of text with pauses, tells what came and when it ended (after the last write).
  const talk = (pieces, pauseMs = 0) => new Promise((resolve) => {
    const socket = net.connect({ port: gateway.port, host: '127.0.0.1', noDelay: true });
    const began = performance.now();
    let text = '', last = began;
    const end = (how) => {
      socket.destroy();
      resolve({ text, how, ms: performance.now() - last, total: performance.now() - began });
    };
    socket.on('data', (data) => { text += data.toString('latin1'); });
    socket.on('end', () => end('closed'));
    socket.on('error', () => end('reset'));
    socket.on('connect', async () => {
      last = performance.now();
      for (const piece of pieces) {
        if (piece !== pieces[0]) await sleep(pauseMs);
        if (socket.destroyed) return;
        socket.write(piece);
        last = performance.now();
      }
    });
  });
  const head = (length) => `POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\n` +
    `Content-Type: application/json\r\nContent-Length: ${length}\r\n\r\n`;

  measured('a head that stops: 408', async () => {
    const answer = await talk(['GET /v1/models HTTP/1.1\r\nHost: a\r\n']);
    assert.match(answer.text, /^HTTP\/1\.1 408 /);
    assertTook(answer.ms, HEADER, 'the refusal');
  });

  measured('a head at one byte per 40 ms: the timer counts from its first byte', async () => {
    const answer = await talk([...'GET /v1/models HTTP/1.1\r\nHost: a\r\n'], 40);
    assert.match(answer.text, /^HTTP\/1\.1 408 |^$/);
    assertTook(answer.total, HEADER, 'the refusal');
  });

  measured('a body that stops: 408', async () => {
    const answer = await talk([`${head(100)}{"mo`]);
    assert.match(answer.text, /^HTTP\/1\.1 408 /);
    assertTook(answer.ms, BODY, 'the refusal');
  });

  measured('a body that stops later: counted from what moved last', async () => {
    const answer = await talk([`${head(5000)}{`, 'x'.repeat(2000), 'x'.repeat(2000)], BODY / 2);
    assert.match(answer.text, /^HTTP\/1\.1 408 /);
    assertTook(answer.ms, BODY, 'the refusal');
  });

  measured('a body at one byte per 30 ms: less than 1 KiB in the timer\'s time is no progress', async () => {
    const answer = await talk([head(100), ...'{"model":"slow-body","x":[1,2,3,4,5,6]}'], 30);
    assert.match(answer.text, /^HTTP\/1\.1 408 |^$/);
    assertTook(answer.total, BODY, 'the refusal');
  });

  measured('300 heads that drip are all closed by the timer, the others are served', async () => {
    const drips = Array.from({ length: 300 }, () => talk([...'GET /v1/models HTTP/1.1\r\n'], 100));
    const began = performance.now();
    for (let i = 0; i < 10; i++) assert.equal((await gateway.call('/v1/models', { key: gateway.key })).status, 200);
    if (performance.now() - began > 500 + SLACK_MS) throw new Late(`ten calls took ${performance.now() - began} ms`);
    for (const answer of await Promise.all(drips)) {
      assert.match(answer.text, /^HTTP\/1\.1 408 |^$/);
      if (answer.total > HEADER * 1.1 + SLACK_MS + 500) throw new Late(`closed after ${answer.total} ms`);
    }
  });

  test('a slow body that moves passes', async () => {
    await fake.script('slow-body', { body: dialects.chat.body() });
    await gateway.upstream({ name: 'slow-body', base_url: fake.url, models: ['slow-body'] });
    const text = JSON.stringify({ ...dialects.chat.request('slow-body', false), padding: 'x'.repeat(6000) });
    const pieces = text.match(/[^]{1,1200}/g);
    const answer = await talk([head(text.length), ...pieces], BODY / 2);
    assert.match(answer.text, /^HTTP\/1\.1 200 /);
    assert.ok(answer.total > BODY * 2, 'longer than the timer');
  });

  measured('an idle connection is closed silently', async () => {
    const fresh = await talk([]);
    assert.deepEqual([fresh.text, fresh.how], ['', 'closed']);
    assertTook(fresh.ms, KEEP, 'a fresh one');
    const used = await talk(['GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n']);
    assert.match(used.text, /^HTTP\/1\.1 200 /);
    assert.equal(used.text.match(/HTTP\/1\.1/g).length, 1);
    assertTook(used.ms, KEEP, 'a used one');
  });

  const flood = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: 'x'.repeat(60000) } }] })}\n\n`;
  const read = (model, onResponse) => {
    const request = http.request(`${gateway.url}${dialects.chat.path}`, { method: 'POST', agent: false,
      headers: { authorization: `Bearer ${gateway.key}`, 'content-type': 'application/json' } }, onResponse);
    request.on('error', () => {});
    request.end(JSON.stringify(dialects.chat.request(model)));
    return request;
  };

  test('a client that stops reading is cut after the write timer', async () => {
    await fake.script('stall', { body: flood, repeat: true, framing: 'chunked' });
    await gateway.upstream({ name: 'stall', base_url: fake.url, models: ['stall'] });
    let request;
    const stopped = await new Promise((resolve) => {
      request = read('stall', (response) => {
        response.once('data', () => {
          response.pause();
          resolve(monotonicMs());
        });
        response.on('error', () => {});
      });
    });
    const entry = await until(async () => (await fake.requests('stall')).find((one) => one.peer_closed), 'the cut', 5000);
    const took = entry.ended_ms - stopped;
    assertTook(took, WRITE, 'the cut', 600); // the kernel's buffers fill first
    request.destroy();
    const line = await gateway.access((one) => one.model_requested === 'stall');
    assert.equal(line.status, 499);
    assert.equal(line.attempts.length, 1);
  });

  test('a client that reads a little now and then is not', { skip: isSlowBuild }, async () => {
    await fake.script('sip', { body: flood, repeat: true, framing: 'chunked' });
    await gateway.upstream({ name: 'sip', base_url: fake.url, models: ['sip'] });
    let isOver = false;
    const request = read('sip', async (response) => {
      response.on('error', () => {});
      response.on('close', () => { isOver = true; });
      response.pause();
      while (!isOver) {
        for (let got = 0; got < 4 << 20 && !isOver;) {
          const bytes = response.read();
          if (bytes) got += bytes.length;
          else await sleep(5);
        }
        await sleep(WRITE * 0.4);
      }
    });
    await sleep(WRITE * 4);
    assert.equal(isOver, false);
    assert.equal((await fake.requests('sip'))[0].how, 'open');
    request.destroy();
    await until(async () => (await fake.requests('sip'))[0].peer_closed, 'its end');
  });
});

describe('afterwards', () => {
  test('one row for each exchange', async () => {
    for (const one of [gateway, early]) {
      const lines = () => one.logs('access').filter((line) => line.exchange && line.route !== '/v1/models'); // no row
      await until(async () => json(await one.admin('/admin/logs?page_size=1')).total === lines().length, 'the rows');
      assert.equal(new Set(lines().map((line) => line.exchange)).size, lines().length);
    }
  });
});

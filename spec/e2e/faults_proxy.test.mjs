// The network between the gateway and its upstream, and between a client and the gateway, through the
// fault proxy: every kind of fault, TLS faults, streams in slices, and no POST twice.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import tls from 'node:tls';
import { call, events, json, until } from './kit/http.mjs';
import { ownRecordings, startFake, startGateway, stopAll } from './kit/kit.mjs';
import { startProxy } from './kit/proxy.mjs';
import { dialects } from './kit/bodies.mjs';

const { chat } = dialects;
const KEY = 'sk-upstream-0123456789';
let fake, proxy, gateway;
const wanted = [];

// An upstream behind a gate of its own, a good one as the second, for models NAME-solo, NAME-pair.
function upstream(dialect, rules, fields = {}) {
  const one = { name: `p${wanted.length + 1}`, dialect, rules, fields };
  wanted.push(one);
  return one;
}

before(async () => {
  fake = await startFake();
  proxy = await startProxy();
  for (const one of wanted) {
    one.gate = await proxy.gate(fake.port, one.rules);
    await fake.script(`${one.name}-good`, { body: one.dialect.stream() });
  }
  gateway = await startGateway({ conf: { hold_head: 20, keepalive: 20, upstreams: wanted.flatMap(({ name, dialect, gate, fields }) => [
    { name: `${name}-one`, provider: dialect.provider, api_key: KEY, models: [`${name}-solo`, `${name}-pair`], priority: 10,
      base_url: gate.base(name), connect_ms: 400, tls_ms: 400, first_byte_ms: 600, event_ms: 300, ...fields },
    { name: `${name}-two`, provider: dialect.provider, api_key: KEY, models: [`${name}-pair`], priority: 0, base_url: fake.base(`${name}-good`) },
  ]) } });
});
after(() => stopAll(gateway, proxy, fake));

const ask = (dialect, model, { stream = true, ...more } = {}) =>
  gateway.call(dialect.path, { key: gateway.key, body: dialect.request(model, stream), ...more });

for (const [name, dialect] of Object.entries(dialects)) {
  describe(`between gateway and upstream: ${name}`, { concurrency: 8 }, () => {
    const s = dialect.stream();
    for (const [what, rules] of [
      ['latency', 'down.latency=100 up.latency=50'], ['jitter', 'down.latency=60,50 seed=11'],
      ['bandwidth', 'down.bandwidth=20000 up.bandwidth=20000'], ['slices of 1', 'down.slice=1 up.slice=1'],
      ['slices of 7, slowly', 'down.slice=70,2 up.slice=70,2'], ['slow close', 'down.slow_close=400'],
      ['a request cut in pieces', 'up.slice=3'],
    ]) {
      const one = upstream(dialect, rules);
      test(`${what}: the stream unchanged, twice`, async () => {
        await fake.script(one.name, { body: s });
        for (let i = 0; i < 2; i++) {
          const answer = await ask(dialect, `${one.name}-solo`);
          assert.equal(answer.text, s, `${answer.status}`);
        }
      });
    }

    // A fault at this byte of the answer; the head is shorter than 200 bytes and all streams longer.
    for (const [what, rules, status] of [
      ['down', null, 502], ['reset at once', 'rst', 502], ['closed at once', 'drop', 502],
      ['reset of the first byte', 'down.reset=0', 502], ['reset in the status line', 'down.reset=5', 502],
      ['closed in the head', 'down.limit=40', 502], ['half closed in the head', 'down.half_close=40', 502],
      ['garbage at the start', 'down.garbage=0,50 seed=5', 502], ['a flipped byte in the status line', 'down.flip=3,1', 502],
      ['garbage as the answer', 'answer=ff00ff00ff000d0a0d0a,close', 502], ['nothing, then closed', 'answer=,close', 502],
      ['the request reset half way', 'up.reset=60', 502], ['the request cut', 'up.limit=60', 502],
      ['the request\'s way half closed', 'up.half_close=60', 502],
    ]) {
      const one = upstream(dialect, rules ?? '');
      test(`${what}: ${status} in the dialect, and the second upstream answers`, async () => {
        if (rules === null) await one.gate.state('down');
        await fake.script(one.name, { body: s });
        const solo = await ask(dialect, `${one.name}-solo`);
        assert.ok([status, 504].includes(solo.status), `${solo.status} ${solo.text}`);
        assert.ok(dialect.isError(json(solo)), solo.text);
        const pair = await ask(dialect, `${one.name}-pair`);
        assert.equal(pair.text, s);
        if (rules !== null) return;
        await one.gate.state('open'); // and it comes back
        assert.equal((await ask(dialect, `${one.name}-solo`)).text, s);
      });
    }

    for (const [what, rules] of [['reset', 'reset'], ['closed', 'limit'], ['half closed', 'half_close'], ['silent', 'timeout']]) {
      const one = upstream(dialect, '');
      test(`${what} behind content: an error in the stream, nothing is asked again`, async () => {
        const body = dialect.stream(['Hel', 'lo '.repeat(40)]);
        const at = 300 + body.indexOf('Hel'); // the head, the chunk's size line, and some
        await one.gate.set(`down.${rules}=${at}`);
        await fake.script(one.name, { body });
        const answer = await ask(dialect, `${one.name}-pair`);
        assert.equal(answer.status, 200, answer.text);
        assert.match(answer.text, /Hel/);
        assert.ok(!dialect.isCleanEnd(answer.text), answer.text);
        assert.ok(dialect.streamError(events(answer.text)), answer.text);
        assert.equal((await gateway.access(answer)).attempts.length, 1);
        assert.equal((await fake.requests(`${one.name}-good`)).length, 0);
      });
    }

    const flips = upstream(dialect, '');
    test('a byte turned anywhere: a stream, an error, never a crash', async () => {
      await fake.script(flips.name, { body: s });
      for (let at = 0; at < 420; at += 14) {
        await flips.gate.set(`down.flip=${at},1`);
        await flips.gate.cut();
        const answer = await ask(dialect, `${flips.name}-solo`);
        if (answer.status >= 400) assert.ok(dialect.isError(json(answer)), `at ${at}: ${answer.text}`);
        else assert.ok(answer.status === 200 && answer.ended === 'clean', `at ${at}: ${answer.status} ${answer.ended}`);
      }
    });
  });
}

describe('between client and gateway', { concurrency: 6 }, () => {
  const body = (dialect, model) => ({ key: gateway.key, body: { ...dialect.request(model, true), padding: 'x'.repeat(1000) } });
  for (const [what, rules] of [['slices of 1', 'up.slice=1 down.slice=1'], ['latency', 'up.latency=80,30 down.latency=80,30'],
    ['bandwidth', 'up.bandwidth=20000 down.bandwidth=20000'], ['slow close', 'down.slow_close=200']]) {
    const one = upstream(chat, '');
    test(`${what}: the stream unchanged`, async () => {
      await fake.script(one.name, { body: chat.stream() });
      const gate = await proxy.gate(gateway.port, rules);
      assert.equal((await call(gate.url + chat.path, body(chat, `${one.name}-solo`))).text, chat.stream());
    });
  }
  for (const [what, rules] of [['reset', 'down.reset=300'], ['cut', 'down.limit=300'], ['request reset', 'up.reset=150'],
    ['request cut', 'up.limit=150'], ['garbage first', 'up.garbage=0,40 seed=2'], ['garbage in the body', 'up.garbage=700,40 seed=2']]) {
    const one = upstream(chat, '');
    test(`${what}: the gateway goes on`, async () => {
      await fake.script(one.name, { body: chat.stream(), split: { size: 100 }, delay_ms: 5 });
      const gate = await proxy.gate(gateway.port, rules);
      const answer = await call(gate.url + chat.path, body(chat, `${one.name}-solo`)).catch(() => null);
      if (answer?.status === 200) assert.equal(answer.ended, 'cut');
      else if (answer) assert.ok(answer.status >= 400 && answer.status < 500, `${answer.status}`);
      assert.equal((await ask(chat, `${one.name}-solo`)).text, chat.stream());
    });
  }
});

// --- TLS

const hasOpenssl = spawnSync('openssl', ['version']).status === 0;

describe('TLS of upstreams', { concurrency: 6, skip: hasOpenssl ? false : 'no openssl' }, () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'moongate-tls-'));
  const servers = [];
  after(() => {
    for (const server of servers) server.close();
    rmSync(dir, { recursive: true, force: true });
  });

  const openssl = (...args) => {
    const result = spawnSync('openssl', args, { cwd: dir, encoding: 'utf8' });
    assert.equal(result.status, 0, result.stderr);
  };
  // A certificate of its own making; expired: its time is over.
  function certificate(name, subject, isExpired = false) {
    const key = path.join(dir, `${name}.key`), file = path.join(dir, `${name}.pem`);
    openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', key, '-out', file,
      '-days', '30', '-subj', `/CN=${subject}`, '-addext', `subjectAltName=DNS:${subject},IP:127.0.0.1`);
    if (isExpired) {
      openssl('req', '-new', '-key', key, '-out', `${file}.csr`, '-subj', `/CN=${subject}`);
      openssl('x509', '-req', '-in', `${file}.csr`, '-signkey', key, '-out', file, '-days', '-1');
    }
    return { key: readFileSync(key), cert: readFileSync(file) };
  }

  // Whatever is decrypted is kept: it must be nothing.
  async function server(options) {
    const seen = { text: '' };
    const one = tls.createServer(options, (socket) => {
      socket.on('data', (bytes) => { seen.text += bytes; });
      socket.on('error', () => {});
    });
    one.on('tlsClientError', () => {});
    servers.push(one);
    await new Promise((resolve) => one.listen(0, '127.0.0.1', resolve));
    return { port: one.address().port, seen };
  }

  // All of these are refused as unknown anyway: no authority of ours is trusted by the binary. That each
  // is refused for its own reason too is shown where one can be (spec/unit/io/test_fetch*.c).
  for (const [what, options, code, rules] of [
    ['self-signed', () => certificate('self', 'localhost'), /tls/],
    ['expired', () => certificate('old', 'localhost', true), /tls/],
    ['of another host', () => certificate('other', 'other.example'), /tls/],
    ['TLS 1.0 only', () => ({ ...certificate('v10', 'localhost'), minVersion: 'TLSv1', maxVersion: 'TLSv1', ciphers: 'DEFAULT@SECLEVEL=0' }), /tls/],
    ['TLS 1.1 only', () => ({ ...certificate('v11', 'localhost'), minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' }), /tls/],
    ['another protocol by ALPN', () => ({ ...certificate('alpn', 'localhost'), ALPNProtocols: ['h2'] }), /tls/],
    ['plain HTTP', null, /tls|timeout/],
    ['garbage for a hello', null, /tls/, 'answer=00112233445566778899aabbccddeeff,hang'],
    ['an SSH server', null, /tls/, 'answer=5353482d322e302d780d0a,hang'],
    ['closed after the hello', null, /tls|disconnected|unreachable/, 'answer=,close'],
    ['reset after the hello', null, /tls|disconnected|unreachable/, 'answer=,reset'],
    ['an alert', null, /tls/, 'answer=15030300020228,close'],
    ['a handshake that stalls', () => certificate('stall', 'localhost'), /timeout/, 'down.timeout=100'],
    ['a handshake that is cut', () => certificate('cut', 'localhost'), /tls|disconnected/, 'down.limit=100'],
    ['a handshake with a turned byte', () => certificate('turned', 'localhost'), /tls|timeout/, 'down.flip=60,1'],
  ]) {
    test(`${what}: refused, the key is not sent, the second upstream answers`, async () => {
      const target = options ? await server(options()) : { port: fake.port, seen: { text: '' } };
      const gate = await proxy.gate(target.port, rules);
      const model = `tls-${what.replace(/\W/g, '-')}`;
      await fake.script('tls-good', { body: chat.stream() });
      await gateway.upstream({ name: `${model}-one`, base_url: `https://${gate.host}`, api_key: KEY, priority: 10,
        models: [`${model}-solo`, `${model}-pair`] });
      await gateway.upstream({ name: `${model}-two`, base_url: fake.base('tls-good'), models: [`${model}-pair`] });
      const solo = await ask(chat, `${model}-solo`);
      assert.ok([502, 504].includes(solo.status), `${solo.status} ${solo.text}`);
      assert.match(json(solo).error.code, code, solo.text);
      assert.equal((await ask(chat, `${model}-pair`)).text, chat.stream());
      assert.ok((await gate.stats()).accepted >= 1, 'it was asked');
      assert.equal(target.seen.text, '', 'nothing went over it');
    });
  }
});

// --- no POST twice

describe('no POST is sent twice by the transport', () => {
  const REPEATS = Number(process.env.E2E_REPEATS ?? 500);
  const attemptsOf = async (answers) => {
    const lines = new Map();
    await until(() => {
      for (const line of gateway.logs('access')) lines.set(line.request_id, line);
      return answers.every((one) => lines.has(one.headers['x-request-id']));
    }, 'the lines of all', 10000);
    return answers.map((one) => lines.get(one.headers['x-request-id']).attempts.length);
  };
  const run = async (model, count, options) => {
    const answers = [];
    let left = count;
    await Promise.all(Array.from({ length: 8 }, async () => {
      while (left-- > 0) answers.push(await ask(chat, model, { stream: false, ...options }));
    }));
    return answers;
  };
  const sum = (list) => list.reduce((total, one) => total + one, 0);

  for (const [what, rules, big] of [['', '', 0], [', a large body', '', 100000], [', in slices', 'up.slice=50', 0]]) {
    const one = upstream(chat, rules);
    test(`a used connection that is closed on receipt${what}, ${REPEATS} times: served = attempts`, async () => {
      const repeats = what ? Math.ceil(REPEATS / 5) : REPEATS;
      await fake.script(one.name, Array.from({ length: repeats }, () => [{ body: chat.body() }, { end: 'close', at: -2 }]).flat());
      await fake.clear();
      const more = big ? { body: { ...chat.request(`${one.name}-solo`, false), padding: 'x'.repeat(big) } } : {};
      const answers = await run(`${one.name}-solo`, 2 * repeats, more);
      const served = await fake.requests(one.name);
      assert.equal(served.length, sum(await attemptsOf(answers)), 'served = logged attempts');
      assert.equal(served.length, 2 * repeats, 'one POST for each call');
      assert.equal(answers.filter((answer) => answer.status === 200).length, repeats);
      for (const answer of answers.filter((bad) => bad.status !== 200)) assert.equal(answer.status, 502, answer.text);
      const connections = new Set(served.map((entry) => entry.connection)).size;
      assert.ok(connections < served.length, 'connections were used again, or nothing was shown');
    });
  }

  for (const [what, step] of [
    ['closed behind each answer, told', { close: true }], ['closed behind each answer, untold', { end: 'close' }],
    ['reset behind each answer', { end: 'reset', end_ms: 0 }],
  ]) {
    const one = upstream(chat, '');
    test(`${what}: never more POSTs than attempts, and each call is whole or one error`, async () => {
      await fake.script(one.name, { body: chat.body(), framing: 'length', ...step });
      await fake.clear();
      const answers = await run(`${one.name}-solo`, Math.ceil(REPEATS / 5));
      const served = await fake.requests(one.name);
      assert.ok(served.length <= sum(await attemptsOf(answers)), `${served.length} POSTs`);
      for (const answer of answers) {
        if (answer.status === 200) assert.deepEqual(json(answer), chat.body());
        else assert.equal(answer.status, 502, answer.text);
      }
      const good = answers.filter((answer) => answer.status === 200).length;
      if (step.close) assert.equal(good, answers.length, 'a told close is no error');
      // What is sent before the close is seen is lost: it must not be sent again.
      assert.ok(good >= answers.length * 0.5, `${good} of ${answers.length}`);
    });
  }
});

// --- recordings through slices

describe('own recordings through slices', () => {
  const PATHS = { chat: '/v1/chat/completions', completions: '/v1/completions', responses: '/v1/responses', messages: '/v1/messages' };
  const found = [];
  const walk = (dir) => {
    for (const entry of readdirSync(path.join(ownRecordings, dir), { withFileTypes: true })) {
      if (entry.isDirectory()) walk(path.join(dir, entry.name));
    }
    const meta = path.join(ownRecordings, dir, 'meta.json'), sse = path.join(ownRecordings, dir, 'response.sse');
    if (!existsSync(meta) || !existsSync(sse)) return;
    const { api, status } = JSON.parse(readFileSync(meta, 'utf8'));
    if (PATHS[api] && (status ?? 200) === 200) found.push({ dir, api, bytes: readFileSync(sse) });
  };
  walk('');
  const request = (recording) => ({ model: `play:${recording.dir}`, stream: true, max_tokens: 1000,
    ...(recording.api === 'completions' ? { prompt: 'x' } : recording.api === 'responses' ? { input: 'x' } : { messages: [{ role: 'user', content: 'x' }] }),
    ...(/chat|completions/.test(recording.api) ? { stream_options: { include_usage: true } } : {}) });

  test(`${found.length} streams: whole and in slices of 1 and 7 the client gets the same bytes`, async () => {
    assert.ok(found.length > 20, `${found.length} found`);
    const gates = { whole: '', single: 'down.slice=1', sevens: 'down.slice=7 up.slice=7' };
    const answers = {};
    for (const [name, rules] of Object.entries(gates)) {
      const gate = await proxy.gate(fake.port, rules);
      const made = [];
      for (const provider of ['openai', 'anthropic'])
        made.push(await gateway.upstream({ name: `slices-${name}-${provider}`, provider, base_url: gate.url, is_default: provider === 'openai', priority: 20 }));
      answers[name] = new Map();
      let next = 0;
      await Promise.all(Array.from({ length: 8 }, async () => {
        while (next < found.length) {
          const recording = found[next++];
          const answer = await gateway.call(PATHS[recording.api], { key: gateway.key, body: request(recording) });
          // Ids and names that the gateway puts into errors of its own differ.
          const text = answer.text.replace(/"request_id":"[^"]*"/g, '').replaceAll(`slices-${name}`, 'slices');
          answers[name].set(recording, `${answer.status} ${answer.ended} ${text}`);
        }
      }));
      for (const { id } of made) await gateway.admin(`/admin/upstreams/${id}`, { method: 'DELETE' });
    }
    for (const recording of found) {
      const whole = answers.whole.get(recording);
      for (const name of ['single', 'sevens']) assert.equal(answers[name].get(recording), whole, `${recording.dir} ${name}`);
      if (whole.startsWith('200 ')) assert.ok(whole.includes(recording.bytes.toString('utf8').slice(0, 200)), recording.dir);
    }
  });
});

describe('afterwards', () => {
  test('all works, one row each', async () => {
    await fake.script('end', { body: chat.stream() });
    await gateway.upstream({ name: 'end', base_url: fake.base('end'), models: ['end'] });
    assert.equal((await ask(chat, 'end')).text, chat.stream());
    const lines = () => gateway.logs('access').filter((line) => line.exchange);
    await until(async () => json(await gateway.admin('/admin/logs?page_size=1')).total === lines().length, 'the rows', 10000);
    assert.equal(new Set(lines().map((line) => line.exchange)).size, lines().length);
  });
});

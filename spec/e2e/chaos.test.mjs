// Many calls at once, upstreams that fail in every way, clients that leave at any time (seeded): the
// gateway goes on, each exchange has one row, nothing stays open; and a stop under load is clean.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { events, json, sleep, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import { dialects } from './kit/bodies.mjs';

const SEED = Number(process.env.E2E_SEED ?? 20260727);
const CALLS = Number(process.env.E2E_CHAOS ?? 1200);

function random(seed) { // mulberry32
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const faults = (dialect) => {
  const body = dialect.stream(), whole = dialect.body(), half = Math.floor(body.length / 2);
  return {
    good: { body }, slow: { body, split: { size: 120 }, delay_ms: 4 }, whole: { body: whole },
    cut: { body, framing: 'chunked', at: half, end: 'close' }, reset: { body, framing: 'chunked', at: half, end: 'reset' },
    early: { end: 'reset', at: -2 }, hang: { end: 'hang', at: -2 }, stall: { body, framing: 'chunked', at: half, end: 'hang' },
    garbage: { raw: 'nonsense\r\n\r\n' }, error: { status: 500, body: { error: 1 } }, busy: { status: 429, headers: { 'retry-after': '1' }, body: {} },
    first: { body: dialect.errorFirst() }, short: { body: whole, length: 99999 }, bytes: { body, split: 'bytes' },
    empty: { body: '' }, unfinished: { body, final_chunk: false },
  };
};

let fake, gateway;
before(async () => {
  fake = await startFake();
  gateway = await startGateway({ conf: { hold_head: 0.15, keepalive: 0.15,
    timeouts: { event: 0.4, first_byte_stream: 0.4, first_byte: 0.4, connect: 0.5 } } });
  for (const [name, dialect] of Object.entries(dialects)) {
    const made = (suffix, priority) => gateway.upstream({ name: `${name}-${suffix}`, provider: dialect.provider, base_url: fake.base(`${name}-${suffix}`),
      models: [`${name}-*`], priority });
    await made('one', 1);
    await made('two', 0);
    const steps = Object.values(faults(dialect));
    await fake.script(`${name}-one`, Array.from({ length: 50 }, (_, i) => steps[i % steps.length]).concat(steps, [{ body: dialect.stream() }]));
    await fake.script(`${name}-two`, { body: dialect.stream(), split: { random: 6, seed: 3 } });
  }
});
after(() => stopAll(gateway, fake));

describe(`chaos, seed ${SEED}`, () => {
  test(`${CALLS} calls`, async () => {
    const next = random(SEED), names = Object.keys(dialects), wrong = [];
    const kinds = Object.fromEntries(names.map((name) => [name, Object.values(faults(dialects[name]))]));
    let answered = 0;
    const one = async (n) => {
      const name = names[Math.floor(next() * names.length)], dialect = dialects[name];
      const fault = () => kinds[name][Math.floor(next() * kinds[name].length)];
      if (n % 7 === 0) await fake.script(`${name}-${n % 2 ? 'one' : 'two'}`, [fault(), fault(), { ...kinds[name][1], times: 3 }, fault()]);
      const leaveMs = next() < 0.35 ? Math.floor(next() * 120) : undefined;
      const stream = next() < 0.8;
      const answer = await gateway.call(dialect.path, { key: gateway.key, body: dialect.request(`${name}-x`, stream), leaveMs }).catch(() => null);
      if (!answer || leaveMs !== undefined) return;
      answered++;
      const text = answer.text.replaceAll(': keepalive\n\n', '');
      const isWhole = text === dialect.stream() || text === JSON.stringify(dialect.body());
      const isError = answer.status >= 400 ? dialect.isError(json(answer))
        : !dialect.isCleanEnd(text.slice(-400)) && dialect.streamError(events(text));
      // A cut close to the end may come after the finish reason: then an error or nothing may follow.
      const isLate = answer.status === 200 && dialect.stream().startsWith(text.slice(0, dialect.stream().length - 200));
      if (!isWhole && !isError && !isLate) wrong.push(`${name} ${answer.status} ${answer.ended}: ${text.slice(-300)}`);
    };
    let n = 0;
    await Promise.all(Array.from({ length: 24 }, async () => {
      while (n < CALLS) await one(n++);
    }));
    assert.deepEqual(wrong.slice(0, 3), []);
    assert.ok(answered > CALLS / 3, `${answered} answers`);
  });

  test('afterwards: one row each, nothing open, all works', async () => {
    const lines = () => gateway.logs('access').filter((line) => line.exchange);
    await until(async () => /^moongate_http_inflight_requests 0$/m.test((await gateway.call('/metrics')).text), 'no exchange in flight', 4000);
    await until(async () => json(await gateway.admin('/admin/logs?page_size=1')).total === lines().length, 'a row for each exchange', 4000);
    assert.ok(lines().length >= CALLS * 0.9, `${lines().length} rows`);
    assert.equal(new Set(lines().map((line) => line.exchange)).size, lines().length, 'one line each');
    await until(async () => (await fake.requests()).every((one) => one.how !== 'open'), 'the end of every upstream call', 4000);
    const { open } = await fake.stats();
    const fds = readdirSync(`/proc/${gateway.child.pid}/fd`).length;
    assert.ok(fds < 100 + open, `${fds} descriptors, ${open} of them to the upstream`);
    for (const [name, dialect] of Object.entries(dialects)) {
      for (const suffix of ['one', 'two']) await fake.script(`${name}-${suffix}`, { body: dialect.stream() });
      const answer = await gateway.call(dialect.path, { key: gateway.key, body: dialect.request(`${name}-x`) });
      assert.equal(answer.text, dialect.stream());
    }
  });

  test('a stop under load: two SIGTERMs amid streams, admin calls and reloads', async () => {
    for (const [name, dialect] of Object.entries(dialects)) await fake.script(`${name}-one`, { body: dialect.stream(), split: { size: 100 }, delay_ms: 10 });
    let goesOn = true;
    const load = Object.entries(dialects).flatMap(([name, dialect]) => Array.from({ length: 8 }, async () => {
      while (goesOn) await gateway.call(dialect.path, { key: gateway.key, body: dialect.request(`${name}-x`) }).catch(() => sleep(5));
    }));
    load.push(...Array.from({ length: 4 }, async () => {
      while (goesOn) {
        await gateway.admin('/admin/logs?page_size=100').catch(() => sleep(5));
        await gateway.admin('/admin/reload', { method: 'POST' }).catch(() => sleep(5));
      }
    }));
    await sleep(400);
    gateway.signal('SIGTERM');
    await sleep(30);
    gateway.signal('SIGTERM');
    const { code, signal } = await gateway.child.exited;
    goesOn = false;
    await Promise.all(load);
    assert.deepEqual([code, signal], [0, null], gateway.err.text.split('\n').filter((line) => !line.includes('"access"')).slice(-20).join('\n'));
  });
});

// Too much of everything: descriptors, connections, bodies, memory, CPU, calls at one upstream, peers
// that only hold on. What is refused is refused at once and told when to come back; what runs goes
// on; the operator gets in; afterwards all is as before.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import http from 'node:http';
import net from 'node:net';
import { readFileSync, readdirSync } from 'node:fs';
import { call, json, sleep, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

const { chat } = bodies.dialects;
const MiB = 1 << 20;
const isSanitized = Boolean(process.env.MOONGATE_NO_GUARD);
let fake;
before(async () => { fake = await startFake(); });
after(() => stopAll(fake));

const cpuTicks = (gateway) => {
  const fields = readFileSync(`/proc/${gateway.child.pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return Number(fields[11]) + Number(fields[12]);
};
const rss = (gateway) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${gateway.child.pid}/status`, 'utf8'))[1]) * 1024;
const descriptors = (gateway) => readdirSync(`/proc/${gateway.child.pid}/fd`).length;
const upstreamOf = (gateway, more = {}) => gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true, ...more });
const post = (gateway, model = 'gpt-plain', more = {}) => gateway.call(chat.path,
  { key: gateway.key, body: chat.request(model, more.stream ?? false), ...more });
const metric = async (gateway, name) => {
  const text = (await call(`${gateway.operator ?? gateway.url}/metrics`, { key: gateway.home.secrets.ADMIN_TOKEN })).text;
  const line = text.split('\n').find((one) => one.startsWith(`${name} `));
  return line === undefined ? undefined : Number(line.split(' ')[1]);
};

// The admin listener, on a port of its own.
const freePort = () => new Promise((resolve) => {
  const server = net.createServer().listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});
async function start(t, { conf = {}, ...more } = {}) {
  const port = await freePort();
  const gateway = await startGateway({ ...more, conf: { workers: 1, ...conf, listen: { admin: `127.0.0.1:${port}` } } });
  gateway.operator = `http://127.0.0.1:${port}`;
  t.after(() => gateway.stop());
  return gateway;
}

// A socket that collects what it gets.
function hold(port, bytes) {
  const socket = net.connect(port, '127.0.0.1');
  socket.text = '';
  socket.isOver = false;
  socket.setEncoding('latin1');
  if (bytes) socket.write(bytes);
  socket.on('data', (data) => { socket.text += data; });
  for (const event of ['end', 'error', 'close']) socket.on(event, () => { socket.isOver = true; });
  return socket;
}
const head = (gateway, length) => `POST ${chat.path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${gateway.key}\r\n` +
  `Content-Type: application/json\r\nContent-Length: ${length}\r\n\r\n`;

test('64 descriptors and 200 clients: fast answers, an idle processor, an operator who gets in, then all as before', async (t) => {
  const gateway = await start(t, { wrapper: ['prlimit', '--nofile=64:64'] });
  await upstreamOf(gateway);
  await fake.script('gpt-plain', { body: bodies.chatBody() });
  const [few] = gateway.logs('few_descriptors');
  assert.ok(few && few.limit === 64 && few.connections >= 2 && few.connections < 32, JSON.stringify(few));
  assert.equal((await post(gateway)).status, 200);
  const before = descriptors(gateway);
  const clients = Array.from({ length: 200 }, () => hold(gateway.port));
  await until(() => clients.filter((one) => one.isOver).length >= 200 - few.connections, 'the refusals');
  for (const one of clients.filter((client) => client.isOver)) {
    assert.match(one.text, /^HTTP\/1\.1 503 [^]*\r\nretry-after: 1\r\n[^]*"too_many_connections"/);
  }
  const kept = clients.filter((one) => !one.isOver);
  assert.equal(kept.length, few.connections);
  // Now all seats are taken.
  const ticks = cpuTicks(gateway);
  await sleep(1000);
  assert.ok(cpuTicks(gateway) - ticks < 20, `${cpuTicks(gateway) - ticks} ticks of 10 ms in a second`);
  assert.equal((await call(`${gateway.operator}/healthz`)).status, 200);
  assert.equal(await metric(gateway, 'moongate_connections'), few.connections);
  assert.ok(await metric(gateway, 'moongate_connections_refused_total{limit="process"}') >= 190);
  assert.equal(gateway.cli('health').code, 0);
  // Those who are in are served, all at once.
  const text = JSON.stringify(chat.request('gpt-plain', false));
  for (const one of kept) one.write(head(gateway, text.length) + text);
  await until(() => kept.every((one) => one.text.includes('chatcmpl-e2e')), 'answers for those who are in');
  for (const one of kept) assert.match(one.text, /^HTTP\/1\.1 200 /);
  for (const one of clients) one.destroy();
  await until(async () => (await post(gateway).catch(() => ({}))).status === 200, 'a call afterwards');
  // Connections to the upstream may be kept for the next calls.
  await until(() => descriptors(gateway) <= before + few.connections, 'the descriptors of before');
  assert.equal(gateway.logs().filter((line) => line.level === 'error').length, 0);
});

describe('connections', () => {
  test('of one address: 429; a trusted proxy speaks for many', async (t) => {
    const gateway = await start(t, { conf: { limits: { connections_per_ip: 5 } } });
    const clients = Array.from({ length: 8 }, () => hold(gateway.port));
    await until(() => clients.filter((one) => one.isOver).length === 3, 'three refusals');
    for (const one of clients.filter((client) => client.isOver)) assert.match(one.text, /^HTTP\/1\.1 429 [^]*\r\nretry-after: 1\r\n/);
    assert.equal((await call(`${gateway.operator}/healthz`)).status, 200);
    for (const one of clients) one.destroy();
    await until(async () => await metric(gateway, 'moongate_connections') === 0, 'no connection');
    const trusting = await start(t, { conf: { limits: { connections_per_ip: 5 }, trusted_proxies: ['127.0.0.0/8'] } });
    const more = Array.from({ length: 8 }, () => hold(trusting.port));
    await until(async () => await metric(trusting, 'moongate_connections') === 8, 'eight connections');
    for (const one of more) one.destroy();
  });

  test('of operators: a cap of their own', async (t) => {
    const gateway = await start(t, { conf: { limits: { operator_connections: 4, connections: 5 } } });
    const port = Number(new URL(gateway.operator).port);
    const clients = Array.from({ length: 6 }, () => hold(port));
    await until(() => clients.filter((one) => one.isOver).length === 2, 'two refusals');
    assert.equal((await gateway.call('/healthz')).status, 200);
    for (const one of clients) one.destroy();
    await until(async () => (await call(`${gateway.operator}/healthz`).catch(() => ({}))).status === 200, 'a seat');
  });
});

test('bodies: 503 before one is read, and the room comes back', async (t) => {
  const gateway = await start(t, { conf: { limits: { bodies_total_bytes: 4 * MiB } } });
  await upstreamOf(gateway);
  await fake.script('gpt-plain', { body: bodies.chatBody() });
  const holders = [hold(gateway.port, head(gateway, 3 * MiB)), hold(gateway.port, head(gateway, MiB / 2))];
  await until(async () => await metric(gateway, 'moongate_request_bodies_bytes') === 3.5 * MiB, 'bodies held');
  const refused = hold(gateway.port, head(gateway, MiB)); // not a byte of it is sent
  await until(() => refused.text.includes('\r\n\r\n'), 'the refusal');
  assert.match(refused.text, /^HTTP\/1\.1 503 [^]*\r\nretry-after: 1\r\n/);
  assert.equal((await post(gateway)).status, 200); // a small one fits
  for (const one of [...holders, refused]) one.destroy();
  await until(async () => await metric(gateway, 'moongate_request_bodies_bytes') === 0, 'the room');
  assert.equal(await metric(gateway, 'moongate_rejections_total{reason="bodies"}'), 1);
});

test('memory: new calls are refused, running ones go on, then it is over', { skip: isSanitized && 'freed memory stays' }, async (t) => {
  const first = await start(t);
  await upstreamOf(first);
  await fake.script('gpt-plain', { body: bodies.chatBody() });
  for (let i = 0; i < 20; i++) await post(first);
  const base = rss(first);
  await first.stop();
  const gateway = await start(t, { conf: { limits: { memory_bytes: base + 64 * MiB } } });
  await upstreamOf(gateway);
  await fake.script('gpt-slow', { body: chat.stream(Array.from({ length: 40 }, (_, i) => `${i} `)), split: { size: 200 }, delay_ms: 60 });
  let isStreaming;
  const began = new Promise((resolve) => { isStreaming = resolve; });
  const stream = post(gateway, 'gpt-slow', { stream: true, onChunk: () => isStreaming() });
  await began;
  // 100 MiB of bodies that never end.
  const big = Array.from({ length: 4 }, () => hold(gateway.port, head(gateway, 26 * MiB)));
  for (const one of big) one.write(Buffer.alloc(25 * MiB, 0x20));
  await until(async () => await metric(gateway, 'moongate_memory_pressure') === 1, 'pressure');
  const refused = await post(gateway);
  assert.equal(refused.status, 503);
  assert.ok(['1', '2'].includes(refused.headers['retry-after']), refused.headers['retry-after']);
  assert.equal(json(refused).error.code, 'overloaded');
  assert.equal((await gateway.call('/healthz')).status, 200);
  assert.equal((await gateway.admin('/admin/upstreams')).status, 200);
  assert.equal(gateway.cli('health').code, 0);
  for (const one of big) one.destroy();
  await until(async () => await metric(gateway, 'moongate_memory_pressure') === 0, 'its end');
  const whole = await stream;
  assert.equal(whole.ended, 'clean');
  assert.ok(chat.isCleanEnd(whole.text));
  assert.equal((await post(gateway)).status, 200);
  await until(() => gateway.logs('memory_pressure_over').length === 1, 'the line of its end');
  assert.equal(gateway.logs('memory_pressure').length, 1);
});

describe('processor', () => {
  const BURN = `
return {
  name = "burn", version = "1.0.0", api = 1, about = "A test.",
  hooks = { admit = function(ctx)
    if ctx.model ~= "gpt-burn" then return end
    local x = 0
    for i = 1, 400000 do x = x + i % 7 end
  end },
}`;

  test('the queue is cut, streams go on, the operator gets in', async (t) => {
    const gateway = await start(t, { conf: { limits: { queue_delay: 0.03 } }, pluginFiles: { burn: BURN } });
    await upstreamOf(gateway);
    await fake.script('gpt-burn', { body: bodies.chatBody() });
    await fake.script('gpt-stream', { body: chat.stream(Array.from({ length: 30 }, (_, i) => `${i} `)), split: { size: 150 }, delay_ms: 40 });
    let isStreaming;
    const began = new Promise((resolve) => { isStreaming = resolve; });
    const stream = post(gateway, 'gpt-stream', { stream: true, onChunk: () => isStreaming() });
    await began;
    const agent = new http.Agent({ keepAlive: true, maxSockets: 100 });
    const answers = [];
    let isOn = true;
    const clients = Array.from({ length: 60 }, async () => {
      while (isOn) answers.push(await post(gateway, 'gpt-burn', { agent }));
    });
    await until(() => answers.some((one) => one.status === 503), 'refusals', 15000);
    const asked = performance.now();
    assert.equal((await call(`${gateway.operator}/healthz`)).status, 200);
    const operatorMs = performance.now() - asked;
    await sleep(1000);
    isOn = false;
    await Promise.all(clients);
    agent.destroy();
    const refused = answers.filter((one) => one.status === 503);
    const served = answers.filter((one) => one.status === 200);
    assert.equal(refused.length + served.length, answers.length);
    assert.deepEqual([...new Set(refused.map((one) => json(one).error.message))], ['The gateway is at its capacity; retry later.']);
    assert.ok(refused.length > 10 && served.length > 10, `${refused.length} refused, ${served.length} served`);
    for (const one of refused) {
      assert.ok(['1', '2'].includes(one.headers['retry-after']));
      assert.equal(json(one).error.code, 'overloaded');
      assert.equal(one.headers['x-should-retry'], 'true');
    }
    assert.ok(new Set(refused.map((one) => one.headers['retry-after-ms'])).size > 5, 'they are spread');
    assert.ok(operatorMs < 2000, `the operator waited for ${operatorMs} ms`);
    const whole = await stream;
    assert.ok(chat.isCleanEnd(whole.text));
    // Counted each, logged by samples, no rows.
    assert.equal(await metric(gateway, 'moongate_rejections_total{reason="overload"}'), refused.length);
    await until(() => gateway.logs('overload_over').length >= 1, 'the line of its end');
    const lines = gateway.logs('access').filter((line) => line.reason === 'overload');
    assert.ok(lines.length >= 1 && lines.length < refused.length, `${lines.length} lines`);
    assert.ok(gateway.logs('overload').length >= 1);
    await until(async () => await metric(gateway, 'moongate_overloaded_workers') === 0, 'its end');
    assert.equal((await post(gateway, 'gpt-burn')).status, 200);
    const rows = json(await gateway.admin('/admin/logs?page_size=100')).items;
    assert.equal(rows.filter((row) => row.status_code === 503).length, 0);
  });
});

test('calls at one upstream: a full one is passed over, then 503', async (t) => {
  const gateway = await start(t);
  const upstream = await upstreamOf(gateway, { max_concurrency: 1 });
  assert.equal(upstream.max_concurrency, 1);
  await fake.script('gpt-hold', { body: bodies.chatBody(), delay_ms: 800 });
  const first = post(gateway, 'gpt-hold');
  await until(async () => (await fake.requests('gpt-hold')).length === 1, 'the first call');
  const second = await post(gateway, 'gpt-hold');
  assert.deepEqual([second.status, json(second).error.code, second.headers['retry-after']], [503, 'upstream_busy', '1']);
  assert.equal((await first).status, 200);
  assert.equal((await post(gateway, 'gpt-hold')).status, 200);
  await gateway.admin(`/admin/upstreams/${upstream.id}`, { method: 'PUT', body: { max_concurrency: 0 } });
  const both = await Promise.all([post(gateway, 'gpt-hold'), post(gateway, 'gpt-hold')]);
  assert.deepEqual(both.map((one) => one.status), [200, 200]);
});

test('1,000 clients that only hold on are closed by the timers; others do not notice', async (t) => {
  const gateway = await start(t, { conf: { workers: 2, limits: { connections_per_ip: 5000 },
    timeouts: { client_header: 1.5, client_body: 1.5, client_keep_alive: 1.5 } } });
  await upstreamOf(gateway);
  await fake.script('gpt-plain', { body: bodies.chatBody() });
  const agent = new http.Agent({ keepAlive: true });
  const measure = async (count) => {
    const times = [];
    for (let i = 0; i < count; i++) {
      const answer = await post(gateway, 'gpt-plain', { agent });
      assert.equal(answer.status, 200);
      times.push(answer.ms);
    }
    return times.sort((a, b) => a - b)[Math.floor(count * 0.9)];
  };
  await measure(20);
  const quiet = await measure(50);
  const clients = Array.from({ length: 1000 }, (_, i) => hold(gateway.port,
    [undefined, 'GET /', head(gateway, 5000)][i % 3]));
  const drip = setInterval(() => {
    clients.forEach((one, i) => { if (i % 3 && !one.isOver) one.write('a'); });
  }, 150);
  await until(async () => await metric(gateway, 'moongate_connections') > 900, 'the crowd');
  const began = performance.now();
  const crowded = await measure(50);
  await until(() => clients.every((one) => one.isOver), 'the end of all', 6000);
  assert.ok(performance.now() - began < 6000);
  clearInterval(drip);
  for (const [i, one] of clients.entries()) {
    if (i % 3) assert.match(one.text, /^HTTP\/1\.1 408 /);
    else assert.equal(one.text, '');
    one.destroy();
  }
  assert.ok(crowded < Math.max(2 * quiet, 50), `p90 was ${quiet.toFixed(1)} ms, then ${crowded.toFixed(1)} ms`);
  agent.destroy();
  await until(async () => await metric(gateway, 'moongate_connections') === 0, 'no connection');
});

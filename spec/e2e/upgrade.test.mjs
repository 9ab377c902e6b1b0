// Upgrade without a dropped request, and what becomes of it when the new process fails; socket
// activation and notification; reloads under load. The long form: spec/upgrade/prove.mjs.
import { afterEach, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { json, sleep, until } from './kit/http.mjs';
import { binary, build, makeHome, startFake, startGateway } from './kit/kit.mjs';
import { dialects } from './kit/bodies.mjs';
import { control, figures, isAlive, proveReloads, proveUpgrades, stopChain } from '../upgrade/proof.mjs';

const dialect = dialects.chat;
const isSlow = !existsSync(path.join(build, 'spec/fault/libmoongate_guard.so')); // a sanitizer's build
let fake, gateway, serving, extra = [];

async function start(options = {}) {
  fake = await startFake();
  const home = makeHome({ ...options, conf: { drain_timeout: 20, upgrade_timeout: 30, ...options.conf } });
  if (options.env) Object.assign(home.env, options.env(home));
  gateway = await startGateway({ home });
  serving = gateway.child.pid;
  await gateway.upstream({ name: 'openai', provider: 'openai', base_url: fake.url, models: ['openai-*'] });
  return gateway;
}

async function upgrade() {
  const answer = await control(gateway, 'upgrade');
  assert.equal(answer.status, 200, answer.text);
  const { pid } = json(answer);
  assert.notEqual(pid, serving);
  serving = pid;
  return pid;
}

const ask = (model, more) => gateway.call(dialect.path, { key: gateway.key, body: dialect.request(model, false), ...more });
const stream = (model, onChunk) => gateway.call(dialect.path, { key: gateway.key, body: dialect.request(model), onChunk });
const logged = async () => json(await gateway.admin('/admin/logs')).total;

afterEach(async () => {
  for (const child of extra.splice(0)) child.kill('SIGKILL');
  const mine = gateway, pid = serving, upstream = fake;
  gateway = fake = undefined;
  if (mine) await stopChain(mine, pid);
  await upstream?.stop();
});

describe('upgrade', () => {
  test('a stream ends whole on the old process, an idle connection carries one more request', async () => {
    await start();
    await fake.script('openai-slow', { body: dialect.stream(), split: { size: 100 }, delay_ms: 150 });
    await fake.script('openai-x', { body: dialect.body() });
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const unused = new http.Agent({ keepAlive: true, maxSockets: 1 });
    assert.notEqual((await ask('openai-x', { agent })).headers.connection, 'close');
    assert.equal((await ask('openai-x', { agent: unused })).status, 200);
    let seen = false;
    const running = stream('openai-slow', () => { seen = true; });
    await until(() => seen, 'the first chunk');
    const old = serving;
    const pid = await upgrade();
    await sleep(300);
    assert.ok(isAlive(old) && isAlive(pid), 'both are there while the stream runs');
    // The same connection, so the old process; it is the connection's last answer.
    const last = await ask('openai-x', { agent });
    assert.equal(last.status, 200);
    assert.equal(last.headers.connection, 'close');
    // A new one is the successor's.
    const fresh = await ask('openai-x');
    assert.equal(fresh.status, 200);
    const answer = await running;
    assert.equal(answer.text, dialect.stream());
    assert.equal(answer.ended, 'clean');
    unused.destroy(); // else it would be kept for the 75 s of an idle connection
    agent.destroy();
    await gateway.child.exited;
    await until(async () => await logged() === 5, 'five rows');
    await sleep(300);
    assert.equal(await logged(), 5, 'each once');
    await until(() => gateway.logs('predecessor_ended').length === 1, 'the successor to be alone');
    assert.equal(json(await control(gateway, 'health')).ready, true);
  });

  test('a chain: each of three processes ends its own stream; SIGUSR2 is another way to ask', async () => {
    await start();
    await fake.script('openai-slow', { body: dialect.stream(), split: { size: 60 }, delay_ms: 120 });
    const streams = [];
    for (let i = 0; i < 3; i++) {
      let seen = false;
      streams.push(stream('openai-slow', () => { seen = true; }));
      await until(() => seen, 'the first chunk');
      if (i < 2) {
        const before = gateway.logs('handed_over').length;
        process.kill(serving, 'SIGUSR2');
        await until(() => gateway.logs('handed_over').length > before, 'the hand-over');
        serving = gateway.logs('handed_over').at(-1).pid;
      }
    }
    for (const answer of await Promise.all(streams)) {
      assert.equal(answer.text, dialect.stream());
      assert.equal(answer.ended, 'clean');
    }
    // The last one hears of both: the first was handed on by the second.
    await until(() => gateway.logs('predecessor_ended').filter((one) => one.left === 0).length >= 1, 'the last to be alone');
    await until(async () => await logged() === 3, 'three rows');
  });

  test('a bad configuration, a crash, a silent process: the old one goes on and says why', async () => {
    const home = makeHome({ conf: { upgrade_timeout: 1 } });
    const own = path.join(home.dir, 'moongate');
    copyFileSync(binary, own);
    fake = await startFake();
    gateway = await startGateway({ home, binary: own });
    serving = gateway.child.pid;
    await gateway.upstream({ name: 'openai', provider: 'openai', base_url: fake.url, models: ['openai-*'] });
    await fake.script('openai-x', { body: dialect.body() });
    const good = readFileSync(home.confFile, 'utf8'), before = figures(serving).fds;
    const failed = async (what) => {
      const answer = await control(gateway, 'upgrade');
      assert.equal(answer.status, 400, answer.text);
      assert.match(json(answer).error.message, what);
      assert.equal((await ask('openai-x')).status, 200);
      assert.equal((await control(gateway, 'health')).status, 200, 'the control socket is still there');
    };
    writeFileSync(home.confFile, good.replace('["workers"] = 2', '["wokers"] = 2'));
    await failed(/gateway\.conf\.lua.*wokers/s);
    writeFileSync(home.confFile, good);
    renameSync(own, `${own}.good`);
    writeFileSync(own, '#!/bin/sh\nexit 3\n');
    chmodSync(own, 0o755);
    await failed(/ended before it was ready/);
    writeFileSync(own, '#!/bin/sh\nexec sleep 60\n');
    await failed(/not ready in time/);
    renameSync(own, `${own}.bad`);
    await failed(/cannot be started/);
    renameSync(`${own}.good`, own);
    await until(() => gateway.logs('upgrade_failed').length === 4, 'four lines in the log');
    assert.ok(figures(serving).fds <= before + 2, 'no descriptor stayed');
    await upgrade();
    assert.equal((await ask('openai-x')).status, 200);
    await until(async () => await logged() === 5, 'five rows');
  });

  test('more workers than before, and the start fails late: no call went to a socket that nobody served', async () => {
    const plugin = (init) => `return { name = "late", version = "1.0.0", api = 1, about = "Slow.", init = function() ${init} end }\n`;
    await start({ conf: { workers: 1 }, pluginFiles: { late: plugin('') } });
    await fake.script('openai-x', { body: dialect.body() });
    const home = gateway.home, text = readFileSync(home.confFile, 'utf8');
    const lockFile = path.join(home.dir, 'data/moongate.db.lock');
    assert.equal(readFileSync(lockFile, 'utf8'), `pid ${serving}\n`);
    writeFileSync(home.confFile, text.replace('["workers"] = 1', '["workers"] = 8'));
    home.writePlugin('late', plugin('local t = os.clock() while os.clock() - t < 0.2 do end error("init broke")'));
    let isOver = false;
    const load = Promise.all(Array.from({ length: 4 }, async () => {
      let count = 0;
      for (; !isOver; count++) assert.equal((await ask('openai-x')).status, 200);
      return count;
    }));
    const answer = await control(gateway, 'upgrade');
    assert.equal(answer.status, 400, answer.text);
    assert.match(json(answer).error.message, /init broke|late/);
    isOver = true;
    assert.ok((await load).every((count) => count > 0));
    assert.equal(readFileSync(lockFile, 'utf8'), `pid ${serving}\n`, 'the lock names the one that lives');
  });

  test('SIGTERM while a successor starts ends both, and the caller is told', async () => {
    const home = makeHome();
    const own = path.join(home.dir, 'moongate');
    copyFileSync(binary, own);
    gateway = await startGateway({ home, binary: own });
    serving = gateway.child.pid;
    renameSync(own, `${own}.good`);
    const note = path.join(home.dir, 'pid');
    writeFileSync(own, `#!/bin/sh\necho $$ > ${note}\nexec sleep 60\n`);
    chmodSync(own, 0o755);
    const asked = control(gateway, 'upgrade');
    const pid = Number(await until(() => existsSync(note) && readFileSync(note, 'utf8').trim(), 'the successor'));
    const busy = await control(gateway, 'upgrade');
    assert.equal(busy.status, 409, 'one at a time');
    gateway.signal('SIGTERM');
    const answer = await asked;
    assert.equal(answer.status, 400);
    assert.match(answer.text, /the gateway stops/);
    assert.equal((await gateway.child.exited).code, 0);
    assert.ok(!isAlive(pid));
  });

  test('other numbers of workers: no socket is without a worker', async () => {
    await start({ conf: { workers: 2 } });
    await fake.script('openai-x', { body: dialect.body() });
    const text = readFileSync(gateway.home.confFile, 'utf8');
    for (const workers of [1, 35, 3]) { // 35: more descriptors than fit one message
      writeFileSync(gateway.home.confFile, text.replace('["workers"] = 2', `["workers"] = ${workers}`));
      await upgrade();
      const answers = await Promise.all(Array.from({ length: 40 }, () => ask('openai-x')));
      assert.ok(answers.every((one) => one.status === 200));
    }
    await until(async () => await logged() === 120, '120 rows');
  });

  test('kill -9 of the one that drains loses nothing; what it would have seen, the other does', async () => {
    await start();
    await fake.script('openai-hang', { body: dialect.stream(['a'], { end: false }), framing: 'chunked', end: 'hang' });
    await fake.script('openai-x', { body: dialect.body() });
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const { key, id } = await gateway.makeKey('other');
    assert.equal((await ask('openai-x', { agent })).status, 200);
    let seen = false;
    const running = stream('openai-hang', () => { seen = true; }).catch((error) => error);
    await until(() => seen, 'the first chunk');
    const old = serving;
    await upgrade();
    // Revoked in the new process, known to the old one.
    assert.equal(gateway.cli('key', 'revoke', id).code, 0);
    await sleep(150);
    assert.equal((await ask('openai-x', { key })).status, 401, 'the successor');
    assert.equal((await ask('openai-x', { key, agent })).status, 401, 'the one that drains');
    await sleep(500);
    const total = await logged();
    process.kill(old, 'SIGKILL');
    await running;
    await until(() => gateway.logs('predecessor_ended').length === 1, 'the successor to notice');
    assert.equal((await ask('openai-x')).status, 200);
    await until(async () => await logged() === total + 1, 'the row');
    agent.destroy();
    gateway.child.exited = Promise.resolve({ code: 0, signal: null }); // it was meant
    await assert.rejects(startGateway({ home: gateway.home, key: false }), /did not start \(1\)/);
    assert.ok(existsSync(path.join(gateway.dir, 'control.sock')));
  });

  test('SIGTERM to the one that drains ends its idle connections; a second upgrade of it is refused', async () => {
    await start();
    await fake.script('openai-x', { body: dialect.body() });
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    assert.equal((await ask('openai-x', { agent })).status, 200);
    const old = serving;
    await upgrade();
    process.kill(old, 'SIGUSR2');
    await until(() => gateway.logs('upgrade_refused').length === 1, 'the refusal');
    await sleep(200);
    assert.ok(isAlive(old), 'it waits for the idle connection');
    const began = performance.now();
    process.kill(old, 'SIGTERM');
    assert.equal((await gateway.child.exited).code, 0);
    assert.ok(performance.now() - began < 4000);
    agent.destroy();
    assert.equal((await ask('openai-x')).status, 200);
    assert.equal(json(await control(gateway, 'health')).ready, true);
  });
});

describe('a service manager', () => {
  test('is told READY, RELOADING, MAINPID and STOPPING', async () => {
    const lines = [];
    await start({ env: (home) => {
      const manager = spawn(path.join(build, 'spec/upgrade/manager'), ['notify', path.join(home.dir, 'notify.sock')],
        { stdio: ['ignore', 'pipe', 'inherit'] });
      extra.push(manager);
      manager.stdout.on('data', (text) => lines.push(...text.toString().trim().split('\n')));
      return { NOTIFY_SOCKET: path.join(home.dir, 'notify.sock') };
    } });
    // The manager may have come later than the first message: a reload says READY again.
    await until(() => lines.includes('ready'), 'the manager');
    gateway.signal('SIGHUP');
    const seen = (wanted) => until(() => lines.find((line) => wanted.test(line)), `${wanted}`);
    await seen(/^RELOADING=1 \| MONOTONIC_USEC=\d+$/);
    await seen(/^READY=1$/);
    const pid = await upgrade();
    await seen(new RegExp(`^MAINPID=${pid} \\| READY=1$`));
    await gateway.child.exited;
    assert.ok(!lines.some((line) => /STOPPING/.test(line)), 'the service does not stop');
    process.kill(serving, 'SIGTERM');
    await seen(/^STOPPING=1$/);
  });

  test('gives a socket: it is served by all workers, and handed over', async () => {
    fake = await startFake();
    const home = makeHome({ conf: { workers: 2 } });
    gateway = await startGateway({ home, wrapper: [path.join(build, 'spec/upgrade/manager'), 'activate', '0'] });
    serving = gateway.child.pid;
    const port = Number(/^port (\d+)/m.exec(gateway.err.text)[1]);
    assert.equal(gateway.port, port, 'the address in use is the one given');
    await gateway.upstream({ name: 'openai', provider: 'openai', base_url: fake.url, models: ['openai-*'] });
    await fake.script('openai-x', { body: dialect.body() });
    for (let i = 0; i < 20; i++) assert.equal((await ask('openai-x')).status, 200);
    await upgrade();
    for (let i = 0; i < 20; i++) assert.equal((await ask('openai-x')).status, 200);
  });
});

describe('under load', () => {
  test('five upgrades: no call fails, each is logged once', async () => {
    const seen = await proveUpgrades({ times: 5, rate: isSlow ? 60 : 200, permille: 20, pauseMs: 300 });
    assert.equal(seen.failed, 0, JSON.stringify(seen));
    assert.equal(seen.answered, seen.started);
    assert.ok(seen.streams > 0);
    assert.deepEqual(seen.rows, { rows: seen.answered, distinct: seen.answered, good: seen.answered });
    assert.equal(seen.quarantined, 0);
  });

  test('fifty reloads: no call fails, nothing grows', async () => {
    const seen = await proveReloads({ times: 50, rate: isSlow ? 60 : 200 });
    assert.equal(seen.failed, 0, JSON.stringify(seen));
    assert.equal(seen.failed_reloads, 0);
    assert.deepEqual(seen.rows, { rows: seen.answered, distinct: seen.answered, good: seen.answered });
    assert.ok(seen.after.files <= seen.before.files + 1, JSON.stringify(seen));
    if (!isSlow) assert.ok(seen.after.rss_kib < seen.before.rss_kib + 16384, JSON.stringify(seen));
  });
});

// What the scenarios share: the gateway and the tools of bench/ on cores of their own, looks at a
// process from outside (/proc), and checks that tell their figures.
import { spawn } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import net from 'node:net';
import { cpus } from 'node:os';
import path from 'node:path';
import { call, json, sleep, until } from '../e2e/kit/http.mjs';
import { build, collect, makeHome, startGateway, started } from '../e2e/kit/kit.mjs';

export { call, json, sleep, until };
export const MiB = 1 << 20;

// The gateway has one core for itself, all tools share another; on one core they share that.
const cores = cpus().length > 1 ? { gateway: 0, tools: 1 } : { gateway: 0, tools: 0 };
const pinned = (core, program, args) => ['taskset', ['-c', String(core), program, ...args]];
const tool = (name) => path.join(build, 'bench', name);

export const machine = () => `${cpus().length} × ${cpus()[0].model}`;
export const hardFiles = Number(/Max open files\s+\d+\s+(\d+)/.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? 1024);

const freePort = () => new Promise((resolve) => {
  const server = net.createServer().listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

// --- processes

export async function startUpstream() {
  const child = started(spawn(...pinned(cores.tools, tool('bench_upstream'), ['--quiet']), { stdio: ['ignore', 'pipe', 'inherit'] }));
  const out = collect(child, 'stdout');
  const port = Number(await until(() => /^port (\d+)/m.exec(out.text)?.[1], 'the upstream'));
  const url = `http://127.0.0.1:${port}`;
  return {
    port, url,
    stats: async () => json(await call(`${url}/bench/stats`)),
    closeIdle: () => call(`${url}/bench/close`),
    // All its answers are of this order from now on; none: as asked.
    always: (order) => call(`${url}/bench/always${order ? `?bench=${order}` : ''}`),
    async stop() {
      child.kill('SIGTERM');
      await child.exited;
    },
  };
}

// One worker, the shipped plugins, log and access log in a file, the operator on a port of his own.
export async function startServer({ conf = {}, env = {}, upstreams, workers = 1 } = {}) {
  const operator = await freePort();
  const home = makeHome({ env, conf: {
    workers, drain_timeout: 5,
    ...conf,
    listen: { admin: `127.0.0.1:${operator}` },
    limits: { connections_per_ip: 1000000, ...conf.limits },
    log: { file: 'moongate.log', ...conf.log },
  } });
  const gateway = await startGateway({ home, noGuard: true, wrapper: ['taskset', '-c', String(cores.gateway)] });
  gateway.operator = `http://127.0.0.1:${operator}`;
  gateway.pid = gateway.child.pid;
  for (const [name, fields] of Object.entries(upstreams ?? {}))
    await gateway.upstream({ name, provider: 'generic', ...fields });
  gateway.metrics = async () => {
    const text = (await call(`${gateway.operator}/metrics`, { key: home.secrets.ADMIN_TOKEN, timeout: 60000 })).text;
    return Object.fromEntries(text.split('\n').filter((line) => line && !line.startsWith('#'))
      .map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))]));
  };
  // Lines of the log, by event; without one: all that are no access lines.
  gateway.logged = (event) => readFileSync(path.join(home.dir, 'moongate.log'), 'utf8').split('\n')
    .filter((line) => line && (event ? line.includes(`"event":"${event}"`) : !line.includes('"event":"access"')))
    .map((line) => JSON.parse(line));
  return gateway;
}

// A run of bench_load. first: its first line of JSON (mode hold: all are open); done: its last.
export function startLoad(gateway, args, { key = gateway.key, port = gateway.port } = {}) {
  const words = ['--port', port, ...(key ? ['--key', key] : []), ...args].map(String);
  const child = started(spawn(...pinned(cores.tools, tool('bench_load'), words), { stdio: ['ignore', 'pipe', 'inherit'] }));
  const out = collect(child, 'stdout');
  const lines = () => out.text.split('\n').filter((line) => line.startsWith('{'));
  const done = new Promise((resolve, reject) => {
    child.on('close', (code, signal) => {
      if (lines().length) resolve(JSON.parse(lines().at(-1)));
      else reject(new Error(`bench_load ${words.join(' ')} ended with ${signal ?? code}`));
    });
  });
  done.catch(() => {});
  return {
    done,
    first: (ms = 120000) => until(() => out.text.includes('}\n') && JSON.parse(lines()[0]), 'the open streams', ms),
    end() {
      child.kill('SIGTERM');
      return done;
    },
  };
}
export const load = (gateway, args, more) => startLoad(gateway, args, more).done;

// Short calls of somebody else at a fixed rate: → {p50, p99 (ms), failed, rps}. The median of rounds.
export async function probe(target, { seconds, rate = 300, rounds = 1, port, key, job = 'kind=unary' } = {}) {
  const seen = [];
  for (let i = 0; i < rounds; i++) {
    const result = await load(target, ['--mode', 'open', '--rate', rate, '-c', 256, '--seconds', seconds,
      '--warmup', 0.2, '--job', job], { port: port ?? target.port, key: key ?? target.key });
    const latency = result.jobs[0].latency_us ?? { p50: Infinity, p99: Infinity };
    seen.push({ p50: latency.p50 / 1000, p99: latency.p99 / 1000, failed: result.failed + result.refused, count: latency.count });
  }
  const middle = (name) => seen.map((one) => one[name]).sort((a, b) => a - b)[seen.length >> 1];
  return { p50: middle('p50'), p99: middle('p99'), failed: seen.reduce((sum, one) => sum + one.failed, 0),
    count: seen.reduce((sum, one) => sum + one.count, 0) };
}

// --- looks at a process

const status = (pid, name) => Number(new RegExp(`${name}:\\s+(\\d+)`).exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]);
export const rss = (pid) => status(pid, 'VmRSS') * 1024;
export const files = (pid) => readdirSync(`/proc/${pid}/fd`).length;

// Nanoseconds of CPU and voluntary sleeps of all threads: a thread that never wakes up has no turns.
export function work(pid) {
  let ns = 0, wakes = 0;
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    try {
      ns += Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0]);
      wakes += Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8'))[1]);
    } catch { /* it ended */ }
  }
  return { ns, wakes };
}
// → {percent of a core, wakes per second} over so many seconds in which nobody else is asked.
export async function workOver(pid, seconds) {
  const before = work(pid), began = performance.now();
  await sleep(seconds * 1000);
  const after = work(pid), took = (performance.now() - began) / 1000;
  return { percent: (after.ns - before.ns) / 1e7 / took, wakes: (after.wakes - before.wakes) / took };
}

// Sockets in CLOSE_WAIT with one of these ports on either end.
export function closeWaits(...ports) {
  const wanted = new Set(ports.map((port) => port.toString(16).toUpperCase().padStart(4, '0')));
  let count = 0;
  for (const file of ['/proc/net/tcp', '/proc/net/tcp6']) {
    for (const line of readFileSync(file, 'utf8').split('\n').slice(1)) {
      const [, local, remote, state] = line.trim().split(/\s+/);
      if (state === '08' && [local, remote].some((end) => wanted.has(end.split(':')[1]))) count++;
    }
  }
  return count;
}

// Memory of the kernel for all TCP sockets of the machine, both ends of each.
export const kernelMemory = () => Number(/^TCP:.* mem (\d+)/m.exec(readFileSync('/proc/net/sockstat', 'utf8'))[1]) * 4096;

// --- base: what a process looks like when nothing is under way

// Nothing runs, nothing is kept: the figures to come back to.
// rssBound: that much is waited for, as free heap pages go back once a minute at most.
export async function restingState(gateway, upstreams, { ms = 20000, rssBound } = {}) {
  const problem = async () => {
    const metrics = await gateway.metrics();
    for (const name of ['moongate_connections', 'moongate_http_inflight_requests', 'moongate_request_bodies_bytes'])
      if (metrics[name] !== 0) return `${name} ${metrics[name]}`;
    for (const upstream of upstreams) {
      const { busy } = await upstream.stats();
      if (busy !== 0) return `${busy} calls at the upstream`;
      await upstream.closeIdle();
    }
    const waits = closeWaits(gateway.port, ...upstreams.map((one) => one.port));
    return waits ? `${waits} in CLOSE_WAIT` : undefined;
  };
  let last;
  const end = Date.now() + ms;
  do {
    last = await problem();
    if (last) await sleep(50);
  } while (last && Date.now() < end);
  await sleep(300);
  if (rssBound) await until(() => rss(gateway.pid) <= rssBound, 'memory', 66000).catch(() => {});
  return { problem: last, rss: rss(gateway.pid), files: files(gateway.pid),
    closeWaits: closeWaits(gateway.port, ...upstreams.map((one) => one.port)) };
}

// --- checks

export class Report {
  passed = 0;
  failed = 0;
  skipped = 0;
  scenarios = [];

  begin(name, about) {
    this.current = { name, about, rows: [] };
    this.scenarios.push(this.current);
    console.log(`# ${name}: ${about}`);
  }

  row(what, value, bound, verdict) {
    this.current.rows.push({ what, value, bound, verdict });
    console.log(`${verdict === 'no' ? 'FAILED' : verdict ? 'ok' : '--'}: ${what}: ${value}${bound ? ` (${bound})` : ''}`);
  }

  note(what, value) { this.row(what, value, '', ''); }

  ok(what, is, value = is ? 'yes' : 'no', bound = '') {
    if (is) this.passed++;
    else this.failed++;
    this.row(what, value, bound, is ? 'yes' : 'no');
    return is;
  }

  atMost(what, value, bound, unit = '', digits = 1) {
    const show = (number) => `${Number.isInteger(number) ? number.toLocaleString('en-US') : number.toFixed(digits)}${unit && ` ${unit}`}`;
    return this.ok(what, value <= bound, show(value), `≤ ${show(bound)}`);
  }

  skip(what, why) {
    this.skipped++;
    this.row(what, 'skipped', why, '');
  }

  // Others' p99 against its base. A short run has too few calls for a ratio of small numbers: floor.
  p99(what, base, under, floorMs) {
    this.note(`${what}: calls failed`, under.failed);
    if (under.failed) this.ok(`${what}: nobody's call failed`, false, under.failed);
    return this.ok(`${what}: p99`, under.p99 < Math.max(2 * base.p99, floorMs),
      `${under.p99.toFixed(2)} ms beside ${base.p99.toFixed(2)} ms (× ${(under.p99 / base.p99).toFixed(2)}; p50 ${under.p50.toFixed(2)} beside ${base.p50.toFixed(2)})`,
      floorMs ? `< 2 × its base, or ${floorMs} ms` : '< 2 × its base');
  }

  backToBase(base, after, toleranceMiB) {
    this.ok('afterwards: nothing under way, gauges 0, no call at the upstream', !after.problem, after.problem ?? 'yes');
    this.atMost('afterwards: descriptors', after.files, base.files);
    this.atMost('afterwards: CLOSE_WAIT', after.closeWaits, 0);
    this.atMost('afterwards: RSS above base', (after.rss - base.rss) / MiB, toleranceMiB, 'MiB');
  }

  close() {
    console.log(`${this.passed} passed, ${this.failed} failed, ${this.skipped} skipped`);
    return this.failed === 0 && this.passed > 0;
  }
}

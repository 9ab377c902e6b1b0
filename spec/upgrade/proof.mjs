// Upgrades and reloads under load. The end-to-end test runs a short form, spec/upgrade/prove.mjs all of
// it. What is proven: no call refused, reset, cut or answered with anything but 200, streams whole,
// each answered call logged exactly once, memory and descriptors as before.
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync, readdirSync, readlinkSync } from 'node:fs';
import path from 'node:path';
import { call, json, sleep, until } from '../e2e/kit/http.mjs';
import { build, makeHome, startGateway } from '../e2e/kit/kit.mjs';

const tool = path.join(build, 'spec/upgrade/upgrade_load');

export const control = (gateway, verb) => call(`http://control/control/v1/${verb}`,
  { socketPath: path.join(gateway.dir, 'control.sock'), body: '{}', timeout: 90000 });

// Zombies count as gone: whoever adopted them is not ours to know.
export function isAlive(pid) {
  try {
    return !/^\d+ \(.*\) Z/s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

// files: descriptors that are no sockets; those come and go with connections.
export function figures(pid) {
  const links = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return 'socket: closed meanwhile';
    }
  });
  return {
    rss_kib: Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]),
    fds: links.length, files: links.filter((link) => !link.startsWith('socket:')).length,
  };
}

// Ends the process that serves at last; the first one's exit is held against the kit's rules.
export async function stopChain(gateway, pid) {
  if (pid !== gateway.child.pid && isAlive(pid)) {
    process.kill(pid, 'SIGTERM');
    await until(() => !isAlive(pid), `the end of ${pid}`, 15000).catch((error) => {
      process.kill(pid, 'SIGKILL');
      gateway.child.kill('SIGKILL');
      throw error;
    });
  }
  await gateway.stop();
  // The kit looks at the first process's end; its successors write to the same place.
  const report = /(ERROR|WARNING): \w+Sanitizer.*(\n.*){0,30}/.exec(gateway.err.text);
  if (report) throw new Error(report[0]);
}

export async function startLoaded(options = {}) {
  const upstream = spawn(tool, ['upstream'], { stdio: ['ignore', 'pipe', 'inherit'] });
  process.on('exit', () => upstream.kill('SIGKILL')); // also when a proof fails half way
  let out = '';
  upstream.stdout.on('data', (text) => { out += text; });
  const port = await until(() => /^port (\d+)/.exec(out)?.[1], 'the upstream');
  const home = makeHome({ conf: { workers: 2, log: { access: false }, drain_timeout: 30,
    limits: { queue_delay: 0 }, // a busy machine is no reason to refuse calls here
    ...options.conf } });
  const gateway = await startGateway({ home, noGuard: options.noGuard });
  await gateway.upstream({ name: 'load', base_url: `http://127.0.0.1:${port}`, models: ['load'] });
  return {
    gateway,
    // → {done: Promise of the figures, end(): no more calls}
    load(prefix, { rate, seconds = 3600, connections = 5000, permille = 10 }) {
      const child = spawn(tool, ['load', gateway.port, gateway.key, prefix, rate, seconds, connections, permille]
        .map(String), { stdio: ['pipe', 'pipe', 'inherit'] });
      let text = '';
      child.stdout.on('data', (more) => { text += more; });
      const done = new Promise((resolve, reject) => {
        child.on('close', (code) => (text ? resolve(JSON.parse(text)) : reject(new Error(`the load tool ended with ${code}`))));
      });
      return { done, end: () => child.stdin.end() };
    },
    count(prefix, calls) {
      const result = spawnSync(tool, ['count', path.join(home.dir, 'data/moongate-logs.db'), prefix, String(calls)],
        { encoding: 'utf8', timeout: 120000 });
      return JSON.parse(result.stdout || '{}');
    },
    async stop(pid = gateway.child.pid) {
      upstream.kill('SIGKILL');
      await stopChain(gateway, pid);
    },
  };
}

export async function proveUpgrades({ times, rate, permille = 10, pauseMs = 500, noGuard = false, tell = () => {} }) {
  const rig = await startLoaded({ noGuard });
  const { gateway } = rig;
  let pid = gateway.child.pid, first = pid;
  try {
    const load = rig.load('up', { rate, permille });
    const took = [];
    await sleep(500);
    for (let i = 0; i < times; i++) {
      const began = performance.now();
      const answer = await control(gateway, 'upgrade');
      if (answer.status !== 200) throw new Error(`upgrade ${i}: ${answer.status} ${answer.text}`);
      took.push(performance.now() - began);
      pid = json(answer).pid;
      tell(`upgrade ${i + 1} of ${times}: ${pid} after ${Math.round(took.at(-1))} ms`);
      await sleep(pauseMs);
    }
    load.end();
    const seen = await load.done;
    const rows = rig.count('up', seen.answered);
    took.sort((a, b) => a - b);
    // All who drained have gone, and the last one is alone with the files.
    await until(() => gateway.logs('predecessor_ended').length >= times, 'the end of all predecessors', 90000);
    return { ...seen, upgrades: times, rows, first_exit: await gateway.child.exited, first, last: pid,
      upgrade_ms: { median: Math.round(took[took.length >> 1]), most: Math.round(took.at(-1)) },
      last_process: figures(pid),
      quarantined: gateway.logs('journal_quarantine').length };
  } finally {
    await rig.stop(pid);
  }
}

// Two rounds under load; between them and at the end the load stops, so that memory and descriptors
// are compared without those of connections.
export async function proveReloads({ times, warm = Math.ceil(times / 5), rate, permille = 10, noGuard = false,
  tell = () => {} }) {
  const rig = await startLoaded({ noGuard });
  const { gateway } = rig;
  const seen = {}, rows = { rows: 0, distinct: 0, good: 0 };
  const over = () => gateway.logs('reloaded').length + gateway.logs('reload_failed').length;
  const round = async (prefix, from, to) => {
    const load = rig.load(prefix, { rate, permille });
    await sleep(500);
    for (let i = from; i < to; i++) {
      // By signal, as an operator does; the next one only after this one is over.
      const before = over();
      gateway.signal('SIGHUP');
      await until(() => over() > before, `reload ${i}`, 20000);
      if ((i + 1) % 100 === 0) tell(`reload ${i + 1} of ${times}: ${JSON.stringify(figures(gateway.child.pid))}`);
    }
    load.end();
    const figuresOfLoad = await load.done;
    for (const [name, value] of Object.entries(figuresOfLoad)) {
      seen[name] = /_ms$/.test(name) ? Math.max(seen[name] ?? 0, value) : Math.round(((seen[name] ?? 0) + value) * 10) / 10;
    }
    for (const [name, value] of Object.entries(rig.count(prefix, figuresOfLoad.answered))) rows[name] += value;
    await sleep(1000);
    return figures(gateway.child.pid);
  };
  try {
    const before = await round('ra', 0, warm), after = await round('rb', warm, times);
    return { ...seen, reloads: times, failed_reloads: gateway.logs('reload_failed').length, warm, rows, before, after };
  } finally {
    await rig.stop();
  }
}

// The fault proxy (spec/fault/proxy.h tells its rules), and what a gateway must have given back when
// nothing goes on any more.
import { spawn } from 'node:child_process';
import net from 'node:net';
import path from 'node:path';
import { existsSync, readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { build, collect, started } from './kit.mjs';
import { call, until } from './http.mjs';

// The clock of the fake's journal, in milliseconds.
export const monotonicMs = () => Number(process.hrtime.bigint() / 1000000n);

// What the machine may take for itself: tests of time allow it above the limit, never below. A
// sanitizer's build, which has no guard, is given more.
export const isSlowBuild = !existsSync(path.join(build, 'spec/fault/libmoongate_guard.so'));
export const SLACK_MS = Number(process.env.E2E_SLACK_MS ?? (isSlowBuild ? 600 : 120));

export async function startProxy() {
  const child = started(spawn(path.join(build, 'spec/fault/fault_proxy'), [],
    { stdio: ['ignore', 'pipe', 'pipe'] }));
  const out = collect(child, 'stdout'), err = collect(child, 'stderr');
  const port = Number(await until(() => /^control (\d+)/m.exec(out.text)?.[1], 'fault proxy'));
  const socket = net.connect(port, '127.0.0.1').setEncoding('utf8');
  const waiting = [];
  let text = '', lines = [];
  socket.on('data', (more) => {
    const parts = (text + more).split('\n');
    text = parts.pop();
    for (const line of parts) {
      if (!/^(ok|err)( |$)/.test(line)) {
        lines.push(line);
        continue;
      }
      const { resolve, reject, said } = waiting.shift();
      if (line.startsWith('ok')) resolve({ rest: line.slice(3), lines });
      else reject(new Error(`fault proxy: ${said}: ${line}`));
      lines = [];
    }
  });
  const tell = (said) => new Promise((resolve, reject) => {
    waiting.push({ resolve, reject, said });
    socket.write(`${said}\n`);
  });
  return {
    // A port in front of 127.0.0.1:to.
    async gate(to, rules = '') {
      const gate = { port: Number((await tell(`open 127.0.0.1:${to}`)).rest) };
      gate.host = `127.0.0.1:${gate.port}`;
      gate.url = `http://${gate.host}`;
      gate.base = (name) => `${gate.url}/s/${name}`;
      gate.set = (more = '') => tell(`set ${gate.port} ${more}`);
      gate.next = (more) => tell(`next ${gate.port} ${more}`);
      gate.state = (name) => tell(`state ${gate.port} ${name}`);
      gate.cut = () => tell(`cut ${gate.port}`);
      gate.log = async () => (await tell(`log ${gate.port}`)).lines;
      gate.stats = async () => Object.fromEntries((await tell(`stats ${gate.port}`)).rest.split(' ')
        .map((one) => one.split('=')).map(([name, value]) => [name, Number(value)]));
      await gate.set(rules);
      return gate;
    },
    async stop() {
      socket.destroy();
      child.kill('SIGTERM');
      await child.exited;
      if (err.text) throw new Error(`fault proxy: ${err.text}`);
    },
  };
}

// --- what is open

const gaugesOf = (text) => Object.fromEntries([...text.matchAll(/^# TYPE (moongate_\S+) gauge$/gm)]
  .map(([, name]) => name).filter((name) => /inflight|in_flight|connections|bod(y|ies)/.test(name))
  .map((name) => [name, [...text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, 'gm'))]
    .reduce((sum, match) => sum + Number(match[1]), 0)]));

const tcpRows = () => readFileSync('/proc/net/tcp', 'utf8').trim().split('\n').slice(1)
  .map((line) => line.trim().split(/\s+/));
const portOf = (text) => parseInt(text.split(':')[1], 16);

// TCP sockets of a process, by their inodes.
function socketsOf(pid) {
  const inodes = new Set(tcpRows().map((row) => row[9]));
  return readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return inodes.has(/^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1]);
    } catch {
      return false; // closed meanwhile
    }
  }).length;
}

// Sockets that their peer has left and that were not closed, on one of these ports.
const forgotten = (ports) => tcpRows()
  .filter((row) => row[3] === '08' && (ports.includes(portOf(row[1])) || ports.includes(portOf(row[2])))).length;

// Descriptors and TCP sockets (without those to the fake upstream that wait for use), gauges of what
// is open, CLOSE_WAIT.
export async function census(gateway, fake) {
  const gauges = gaugesOf((await call(`${gateway.url}/metrics`)).text);
  const { open } = await fake.stats();
  return { descriptors: readdirSync(`/proc/${gateway.child.pid}/fd`).length - open,
    sockets: socketsOf(gateway.child.pid) - open, ...gauges, forgotten: forgotten([gateway.port, fake.port]) };
}

// Waits until the gateway holds no more than it did; fewer descriptors are fine.
export async function backToBase(gateway, fake, base, ms = 3000) {
  let now;
  await until(async () => {
    now = await census(gateway, fake);
    return Object.entries(base).every(([name, value]) => now[name] <= value);
  }, 'the base', ms).catch(() => {
    throw new Error(`not back to base within ${ms} ms: ${JSON.stringify(now)}, was ${JSON.stringify(base)}`);
  });
}

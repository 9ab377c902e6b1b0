#!/usr/bin/env node
// A million client keys in a running gateway: time to ready, memory, and how long creating
// and revoking a key through the admin REST surface takes while requests are served. After each
// answer the key is tried at once on fresh connections, which spread over the workers: a key that
// was made must be let in, one that was revoked must not.
//
//   bench/million_keys.mjs BUILD_DIR [KEYS=1000000] [CHANGES=200] [RATE=1000] [WORKERS=2]
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const [build, ...numbers] = process.argv.slice(2);
if (!build) {
  console.error('usage: bench/million_keys.mjs BUILD_DIR [KEYS] [CHANGES] [RATE] [WORKERS]');
  process.exit(2);
}
const [keys = 1000000, changes = 200, rate = 1000, workers = 2] = numbers.map(Number);
const tool = (name) => path.resolve(build, 'bench', `bench_${name}`);
const dir = mkdtempSync(path.join(tmpdir(), 'moongate-keys-'));
mkdirSync(path.join(dir, 'data'), { mode: 0o700 });
const children = [];
const keyText = (n) => `sk-bench-${String(n).padStart(32, '0')}`;

function start(command, args, options) {
  const child = spawn(command, args, options);
  children.push(child);
  return child;
}

function finish(code) {
  for (const child of children) child.kill('SIGTERM');
  setTimeout(() => {
    for (const child of children) child.kill('SIGKILL');
    rmSync(dir, { recursive: true, force: true });
    process.exit(code);
  }, 1500);
}

const freePort = () => new Promise((resolve) => {
  const server = createServer().listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

// Each call on a connection of its own unless an agent is given.
const call = (port, method, target, { token, body, agent = false } = {}) => new Promise((resolve, reject) => {
  const text = body === undefined ? undefined : JSON.stringify(body);
  const request = http.request({ host: '127.0.0.1', port, method, path: target, agent, headers: {
    authorization: `Bearer ${token}`,
    ...(text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
  } }, (answer) => {
    let got = '';
    answer.setEncoding('utf8').on('data', (piece) => { got += piece; })
      .on('end', () => resolve({ status: answer.statusCode, text: got }));
  });
  request.on('error', reject).end(text);
});

const chat = (port, token) => call(port, 'POST', '/v1/chat/completions',
  { token, body: { model: 'bench', messages: [{ role: 'user', content: 'Hi' }] } });

function times(name, list) {
  const sorted = [...list].sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))].toFixed(1);
  console.log(`${name.padEnd(10)} p50 ${at(0.5)} ms  p95 ${at(0.95)} ms  p99 ${at(0.99)} ms  max ${at(1)} ms`);
  return Number(at(0.99));
}

const memory = (pid) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;

async function main() {
  const file = path.join(dir, 'data', 'moongate.db');
  const filled = spawnSync(tool('keys'), ['fill', file, String(keys)], { stdio: 'inherit' });
  if (filled.status !== 0) throw new Error('bench_keys fill');
  const [port, upstreamPort] = [await freePort(), await freePort()];
  start(tool('upstream'), ['--port', String(upstreamPort), '--quiet'], { stdio: 'ignore' });
  const admin = randomBytes(24).toString('hex');
  const env = { ...process.env, HOST: '127.0.0.1', PORT: String(port), WORKERS: String(workers),
    DATABASE_URL: `sqlite:///${file}`, ADMIN_TOKEN: admin, MOONGATE_HOME: root, ACCESS_LOG: 'true',
    ENCRYPTION_KEY: randomBytes(32).toString('base64').replaceAll('+', '-').replaceAll('/', '_'),
    SECRET_KEY: randomBytes(32).toString('hex') };
  writeFileSync(path.join(dir, 'gateway.conf.lua'), readFileSync(path.join(root, 'gateway.conf.lua')));
  const began = process.hrtime.bigint();
  const gateway = start(path.resolve(build, 'moongate'), ['run', '-c', 'gateway.conf.lua'],
    { cwd: dir, env, stdio: ['ignore', 'ignore', openSync(path.join(dir, 'log'), 'w')] });
  for (;;) {
    if (gateway.exitCode !== null) throw new Error(`the gateway did not start: ${readFileSync(path.join(dir, 'log'), 'utf8').slice(-600)}`);
    const answer = await call(port, 'GET', '/healthz', { token: '' }).catch(() => undefined);
    if (answer?.status === 200) break;
    await new Promise((resolve) => { setTimeout(resolve, 10); });
  }
  console.log(`ready after ${(Number(process.hrtime.bigint() - began) / 1e9).toFixed(2)} s, ` +
    `RSS ${memory(gateway.pid).toFixed(0)} MiB with ${keys} keys, ${workers} workers`);
  const made = await call(port, 'POST', '/admin/upstreams', { token: admin, body: {
    name: 'bench', provider: 'generic', api_key: 'sk-none-of-yours', base_url: `http://127.0.0.1:${upstreamPort}`, is_default: true } });
  if (made.status >= 300) throw new Error(`upstream: ${made.status} ${made.text}`);
  const upstreams = [JSON.parse(made.text).id];
  const first = await chat(port, keyText(1 + Math.floor(keys / 2)));
  if (first.status !== 200) throw new Error(`a key of the database: ${first.status} ${first.text}`);

  const load = start(tool('load'), ['--port', String(port), '--mode', 'open', '--rate', String(rate), '-c', '64',
    '--seconds', '45', '--key', keyText(7), '--job', 'kind=unary'], { stdio: ['ignore', 'pipe', 'inherit'] });
  let loadText = '';
  load.stdout.on('data', (piece) => { loadText += piece; });
  const loadEnd = new Promise((resolve) => { load.on('close', resolve); });
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const timed = async (list, ...args) => {
    const from = process.hrtime.bigint();
    const answer = await call(...args);
    list.push(Number(process.hrtime.bigint() - from) / 1e6);
    if (answer.status >= 300) throw new Error(`${args[1]} ${args[2]}: ${answer.status} ${answer.text}`);
    return answer;
  };
  const [create, revoke] = [[], []];
  let wrong = 0;
  const tryKey = async (token, wanted) => {
    const answers = await Promise.all(Array.from({ length: workers * 2 }, () => chat(port, token)));
    wrong += answers.filter((one) => one.status !== wanted).length;
  };
  const end = Date.now() + 40000;
  const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
  await pause(1000);
  for (let i = 0; i < changes && Date.now() < end; i += 1) {
    await pause(20); // spread over the load
    const one = JSON.parse((await timed(create, port, 'POST', '/admin/keys', { token: admin, agent, body: { name: `n${i}`, upstream_ids: upstreams } })).text);
    await tryKey(one.key_value, 200);
    await timed(revoke, port, 'DELETE', `/admin/keys/${one.id}`, { token: admin, agent });
    await tryKey(one.key_value, 401);
  }
  agent.destroy();
  const worst = [times('create', create), times('revoke', revoke)];
  console.log(`${create.length} keys made and revoked under ${rate} requests/s; ` +
    `tries that did not follow the answer: ${wrong}; RSS ${memory(gateway.pid).toFixed(0)} MiB`);
  load.kill('SIGINT');
  await loadEnd;
  console.log(`load: ${loadText.trim().slice(0, 400)}`);
  finish(wrong > 0 || worst.some((ms) => ms >= 100) ? 1 : 0);
}

main().catch((error) => {
  console.error(`million-keys: ${error.message}`);
  finish(1);
});

// Starts and stops what a test file needs: the scripted upstream and a gateway of its own, with its
// own folder, keys and secrets, under the guard. Everything ends with the file.
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync }
  from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { call, json, until } from './http.mjs';

export const project = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../..');
export const build = process.env.MOONGATE_BUILD ?? path.join(project, 'build/debug');
export const shared = process.env.MOONGATE_SHARED ?? path.join(project, '../shared');
export const recordings = path.join(shared, 'fixtures');
export const ownRecordings = path.join(project, 'spec/fixtures');
export const binary = path.join(build, 'moongate');
const guard = path.join(build, 'spec/fault/libmoongate_guard.so');
const running = new Set();

process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

export function collect(child, name) {
  const out = { text: '' };
  child[name].setEncoding('utf8');
  child[name].on('data', (text) => { out.text += text; });
  return out;
}

export function started(child) {
  running.add(child);
  child.exited = new Promise((resolve) => {
    child.on('exit', (code, signal) => {
      running.delete(child);
      resolve({ code, signal });
    });
  });
  return child;
}

// --- the scripted upstream

export async function startFake() {
  const args = [recordings, ownRecordings].filter(existsSync).flatMap((dir) => ['--root', dir]);
  const child = started(spawn(path.join(build, 'spec/fake/fake_upstream'), args,
    { stdio: ['ignore', 'pipe', 'pipe'] }));
  const out = collect(child, 'stdout'), err = collect(child, 'stderr');
  const port = await until(() => /^port (\d+)/m.exec(out.text)?.[1], 'fake upstream');
  const url = `http://127.0.0.1:${port}`;
  return {
    url, port: Number(port),
    base: (name) => `${url}/s/${name}`,
    // One step, or a list of them; see spec/fake/script.c.
    async script(name, steps) {
      const answer = await call(`${url}/_script/${encodeURIComponent(name)}`, { body: steps });
      if (answer.status !== 200) throw new Error(`script ${name}: ${answer.text}`);
    },
    // What was served since the last clear.
    async requests(script) {
      const all = json(await call(`${url}/_requests`)).requests;
      return all.filter((one) => script === undefined || one.script === script)
        .map((one) => ({ ...one, header: Object.fromEntries(one.headers) }));
    },
    clear: () => call(`${url}/_requests`, { method: 'DELETE' }),
    stats: async () => json(await call(`${url}/_stats`)),
    async stop() {
      child.kill('SIGTERM');
      await child.exited;
      if (err.text) throw new Error(`fake upstream: ${err.text}`);
    },
  };
}

// --- the gateway

// A JavaScript value as a Lua one.
export function lua(value) {
  if (value === null || value === undefined) return 'nil';
  if (typeof value === 'string') {
    return `"${value.replace(/[\\"\n\r\0]/g, (c) => `\\${c.charCodeAt(0).toString().padStart(3, '0')}`)}"`;
  }
  if (typeof value !== 'object') return String(value);
  if (Array.isArray(value)) return `{${value.map(lua).join(', ')}}`;
  return `{${Object.entries(value).map(([key, item]) => `[${lua(key)}] = ${lua(item)}`).join(', ')}}`;
}

const PLUGINS = ['auth_key', 'admin', 'proxy', 'health', 'metrics', 'demo', 'provider_openai',
  'provider_anthropic', 'provider_generic', 'select_weighted', 'failover', 'prices', 'request_log'];

export const shippedPlugins = PLUGINS;

function merge(base, more) {
  const out = { ...base };
  for (const [key, value] of Object.entries(more)) {
    const isTable = value && typeof value === 'object' && !Array.isArray(value);
    out[key] = isTable ? merge(out[key] ?? {}, value) : value;
  }
  return out;
}

// A folder with a configuration and secrets; nothing runs yet.
export function makeHome({ conf = {}, env = {}, plugins, pluginFiles = {}, confText } = {}) {
  const dir = mkdtempSync(path.join(tmpdir(), 'moongate-e2e-'));
  const secrets = {
    ENCRYPTION_KEY: randomBytes(32).toString('base64').replaceAll('+', '-').replaceAll('/', '_'),
    SECRET_KEY: randomBytes(32).toString('hex'),
    ADMIN_TOKEN: randomBytes(24).toString('hex'),
  };
  const home = {
    dir, secrets,
    confFile: path.join(dir, 'gateway.conf.lua'),
    env: { PATH: process.env.PATH, HOME: dir, LANG: 'C.UTF-8', MOONGATE_HOME: project, ...secrets, ...env },
    // Writes plugins/NAME/FILE; a plain NAME is its init.lua.
    writePlugin(name, text, file = 'init.lua') {
      const folder = path.join(dir, 'plugins', name);
      mkdirSync(folder, { recursive: true });
      writeFileSync(path.join(folder, file), text);
    },
    remove: () => rmSync(dir, { recursive: true, force: true }),
  };
  for (const name of ['ASAN_OPTIONS', 'LSAN_OPTIONS', 'UBSAN_OPTIONS', 'TSAN_OPTIONS']) if (process.env[name]) home.env[name] = process.env[name];
  for (const [name, value] of Object.entries(home.env)) if (value === null) delete home.env[name];
  for (const [name, text] of Object.entries(pluginFiles)) home.writePlugin(name, text);
  const own = Object.keys(pluginFiles);
  const table = merge({
    listen: { host: '127.0.0.1', port: 0, control: path.join(dir, 'control.sock') },
    workers: 2,
    database_url: `sqlite:///${path.join(dir, 'data/moongate.db')}`,
    durability: 'process',
    plugin_dirs: [path.join(dir, 'plugins'), path.join(project, 'plugins')],
    drain_timeout: 5,
    plugins: plugins ?? [...own, ...PLUGINS],
  }, conf);
  const named = ['ENCRYPTION_KEY', 'SECRET_KEY', 'ADMIN_TOKEN']
    .map((name) => `${name.toLowerCase()} = env("${name}")`).join(', ');
  const text = confText ?? `local conf = ${lua(table)}\nfor name, value in pairs { ${named} } do ` +
    `conf[name] = value end\nreturn conf\n`;
  mkdirSync(path.join(dir, 'plugins'), { recursive: true });
  writeFileSync(home.confFile, text);
  return home;
}

// A verb of the command line; → {code, out, err}.
export function cli(home, ...args) {
  const result = spawnSync(binary, [...args, '-c', home.confFile],
    { env: home.env, cwd: home.dir, encoding: 'utf8', timeout: 20000 });
  return { code: result.status, out: result.stdout, err: result.stderr, signal: result.signal };
}

export function cliAsync(home, ...args) {
  const child = started(spawn(binary, [...args, '-c', home.confFile],
    { env: home.env, cwd: home.dir, stdio: ['ignore', 'pipe', 'pipe'] }));
  const out = collect(child, 'stdout'), err = collect(child, 'stderr');
  return child.exited.then(({ code }) => ({ code, out: out.text, err: err.text }));
}

export async function startGateway(options = {}) {
  const home = options.home ?? makeHome(options);
  const env = { ...home.env };
  if (existsSync(guard) && !options.noGuard) env.LD_PRELOAD = guard;
  // A wrapper is a program that becomes the gateway: ['prlimit', '--nofile=64'].
  const [program, ...args] = [...(options.wrapper ?? []), options.binary ?? binary, 'run', '-c', home.confFile];
  const child = started(spawn(program, args, { env, cwd: home.dir, stdio: ['ignore', 'pipe', 'pipe'] }));
  const out = collect(child, 'stdout'), err = collect(child, 'stderr');
  const gateway = {
    home, child, out, err, dir: home.dir,
    guarded: Boolean(env.LD_PRELOAD),
    logs: (event) => err.text.split('\n').filter((line) => line.startsWith('{'))
      .map((line) => { try { return JSON.parse(line); } catch { return {}; } })
      .filter((line) => event === undefined || line.event === event),
    // The access line of a call, by the id in its answer or by a test.
    access: (which) => until(() => gateway.logs('access').find(typeof which === 'function' ? which
      : (line) => line.request_id === (which.headers?.['x-request-id'] ?? which)), 'access line'),
    call: (target, more) => call(gateway.url + target, { ca: options.ca, ...more }),
    admin: (target, more = {}) => call(gateway.url + target,
      { ca: options.ca, key: home.secrets.ADMIN_TOKEN, ...more }),
    cli: (...args) => cli(home, ...args),
    async upstream(fields) {
      const { id: _ignored, ...body } = { provider: 'openai', api_key: 'sk-upstream-0123456789', ...fields };
      const answer = await gateway.admin('/admin/upstreams', { body });
      if (answer.status !== 201) throw new Error(`upstream: ${answer.status} ${answer.text}`);
      return json(answer);
    },
    async makeKey(name = 'e2e', fields = {}) {
      const result = await cliAsync(home, 'key', 'create', '--name', name, '--json',
        ...Object.entries(fields).flatMap(([option, value]) => [`--${option}`, value]));
      if (result.code !== 0) throw new Error(`key create: ${result.err}`);
      return JSON.parse(result.out);
    },
    // Everything it wrote to files, database included.
    filesWith(needle) {
      const hits = [];
      const walk = (dir) => {
        for (const name of readdirSync(dir)) {
          const file = path.join(dir, name);
          const stat = statSync(file);
          if (stat.isDirectory()) walk(file);
          else if (stat.isFile() && file !== home.confFile && readFileSync(file).includes(needle)) hits.push(file);
        }
      };
      walk(home.dir);
      return hits;
    },
    signal: (name) => child.kill(name),
    // Ends it and holds it to what every gateway must keep: a clean exit, a silent guard.
    async stop({ keep = false, ms = 12000 } = {}) {
      if (running.has(child)) child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), ms);
      const { code, signal } = await child.exited;
      clearTimeout(timer);
      if (!keep) home.remove();
      const blocked = /^guard: .*(\n.*){0,20}/m.exec(err.text);
      if (blocked) throw new Error(blocked[0]);
      if (signal || code !== 0) {
        const tail = err.text.split('\n').filter((line) => !line.includes('"access"')).slice(-30).join('\n');
        throw new Error(`the gateway ended with ${signal ?? code}\n${tail}`);
      }
    },
  };
  const seen = await until(() => {
    if (child.exitCode !== null || child.signalCode !== null)
      throw new Error(`the gateway did not start (${child.signalCode ?? child.exitCode}):\n${err.text.slice(-3000)}`);
    return /listens on (https?:\/\/\S+)/.exec(out.text)?.[1];
  }, 'start of the gateway', 15000).catch((error) => {
    child.kill('SIGKILL');
    if (!options.home) home.remove();
    throw error;
  });
  gateway.url = seen;
  gateway.port = Number(new URL(seen).port);
  if (options.key !== false) gateway.key = (await gateway.makeKey()).key;
  return gateway;
}

// Stops several things; the first failure wins, all are stopped.
export async function stopAll(...things) {
  let first;
  for (const thing of things) {
    try {
      await thing?.stop();
    } catch (error) {
      first ??= error;
    }
  }
  if (first) throw first;
}

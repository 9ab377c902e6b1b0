// The soak: short calls, streams, aborts, slow and stalled readers, an upstream that turns bad in
// every way, connections that the upstream closes while idle, keys that come and go, a reload each
// 30 s and one upgrade, all at once. Each kind of load says which ends it may see; any other end is
// unexplained and fails the soak, as does memory that grows, a descriptor or a CLOSE_WAIT that stays.
import { readFileSync, writeFileSync } from 'node:fs';
import { release } from 'node:os';
import path from 'node:path';
import { control, isAlive, stopChain } from '../upgrade/proof.mjs';
import { call, closeWaits, files, json, machine, MiB, probe, Report, restingState, rss, sleep, startLoad, startServer,
  startUpstream, until } from './kit.mjs';
import { isGrowing, line } from './slope.mjs';

const seconds = Number(process.env.SOAK_SECONDS ?? 1200);
const upgradeAt = seconds * 0.2, warmUntil = seconds * 0.4;
const reloadEach = Math.min(30, seconds / 6), sampleEach = Math.min(5, seconds / 30), probeEach = Math.max(5, seconds / 40);
const STALL = 10;
const report = new Report();
const out = process.argv[2];

// Ends of bench_load's exchanges by job; "aborted" is what its own job asked for.
const EXPECTED = {
  calls: { done: 1 },
  streams: { done: 1 },
  claude: { done: 1 },
  'claude-streams': { done: 1 },
  paced: { done: 1 },
  fallback: { done: 1 },
  aborts: { aborted: 1, done: 1 },
  'slow readers': { done: 1 },
  'stalled readers': { reset: 1, truncated: 1 }, // cut by the timer for stalled writers
  'bad upstream': { done: 1, refused: 1, status_5xx: 1, truncated: 1, reset: 1 },
};
// error_class and status of the access lines; those with a test are explained by it alone.
const isBad = (line) => line.model_requested === 'bad';
const EXPLAINED = [
  ['answered', (line) => line.status < 400 && !line.error_class],
  ['client left (aborts)', (line) => line.error_class === 'client_closed_request'],
  ['stalled reader cut', (line) => line.stream && /stop|stall|gone/.test(JSON.stringify(line.attempts ?? '') + line.flags) && !isBad(line) && line.status < 500],
  ['bad upstream: 5xx to its own callers', (line) => isBad(line) && line.status >= 500],
  ['bad upstream: stream cut', (line) => isBad(line) && line.error_class === 'upstream_disconnected'],
  ['revoked key', (line) => line.status === 401 && line.error_class === 'invalid_api_key'],
  ['half a request (aborts)', (line) => line.status === 400 || line.status === 408],
];
const LOG_EVENTS = { // of levels warn and error: what the scenario itself brings about
  attempt_failed: 'bad upstream', stream_cut: 'bad upstream', plugin_warnings: 'durability', few_descriptors: 'this machine',
};

const upstream = await startUpstream(), bad = await startUpstream();
const gateway = await startServer({
  workers: 2,
  conf: { durability: 'power', drain_timeout: 60, upgrade_timeout: 30,
    timeouts: { client_write: STALL, first_byte: 1, first_byte_stream: 1, event: 2 } },
});
let pid = gateway.child.pid, isOver = false;
const ids = {};
const add = async (name, fields) => { ids[name] = (await gateway.upstream({ name, ...fields })).id; };
await add('openai', { provider: 'generic', base_url: upstream.url, models: ['bench'] });
await add('second', { provider: 'generic', base_url: upstream.url, models: ['both'] });
await add('claude', { provider: 'anthropic', base_url: upstream.url, models: ['claude'] });
await add('bad', { provider: 'generic', base_url: bad.url, models: ['bad', 'both'], priority: 10 });

console.log(`soak: ${seconds} s on ${gateway.url}, process ${pid}`);
const warm = startLoad(gateway, ['-c', 16, '--seconds', Math.min(3, seconds / 10), '--job', 'kind=unary', '--job', 'kind=burst']);
await warm.done;
const base = await restingState(gateway, [upstream, bad]);

const open = (rate, jobs, more = []) => startLoad(gateway, ['--mode', 'open', '--rate', rate, '--poisson', '-c', 2000,
  '--warmup', 0, '--seconds', seconds, ...more, ...jobs.flatMap((job) => ['--job', job])]);
const closed = (count, job, ...more) => startLoad(gateway, ['-c', count, '--warmup', 0, '--seconds', seconds, '--timeout', 120, ...more, '--job', job]);
const loads = [
  open(150, ['name=calls,kind=unary,weight=6', 'name=calls,kind=unary,body=50000,bytes=50000', 'name=streams,kind=burst,weight=2',
    'name=streams,kind=events,events=30,gap_ms=10']),
  open(40, ['name=claude,kind=unary,dialect=messages,model=claude', 'name=claude-streams,kind=events,events=20,gap_ms=5,dialect=messages,model=claude']),
  closed(20, 'name=paced,kind=paced,events=100'),
  open(40, ['connect', 'head', 'body', 'sent', 'first', 'mid', 'end'].flatMap((stage, i) => {
    const order = ['kind=unary', 'kind=unary', 'kind=unary,body=20000', 'kind=events,gap_ms=20,abort_ms=5', 'kind=idle,hold_ms=500',
      'kind=events,gap_ms=1,events=10000,abort_bytes=2000', 'kind=burst,events=20'][i];
    return ['0', '1'].map((fin) => `name=aborts,abort=${stage},fin=${fin},${order}`);
  }), ['--seed', 11]),
  // What they read last may be long gone from the gateway, and its connection with it.
  closed(5, 'name=slow readers,kind=flood,total=2097152,read=200000', '--reconnect'),
  closed(3, 'name=stalled readers,kind=flood,stall=1'),
  open(10, ['name=bad upstream,kind=unary,model=bad', 'name=bad upstream,kind=events,events=20,model=bad']),
  open(20, ['name=fallback,kind=unary,model=both', 'name=fallback,kind=events,events=20,gap_ms=5,model=both']),
];

// --- what happens beside the load

const began = performance.now();
const now = () => (performance.now() - began) / 1000;
const samples = [], probes = [], modes = {}, happened = { keys: 0, reloads: 0, closes: 0, upgrade: undefined }, problems = [];
const problem = (what) => {
  if (problems.length < 50) problems.push(`${now().toFixed(0)} s: ${what}`);
};
const each = (period, work) => (async () => {
  for (let i = 0; !isOver; i++) {
    try {
      await work(i);
    } catch (error) {
      if (!isOver) problem(`${work.name}: ${error.message}`);
    }
    for (const until_ms = performance.now() + period * 1000; !isOver && performance.now() < until_ms;) await sleep(50);
  }
})();

async function sample() {
  const metrics = await gateway.metrics();
  samples.push({ at: now(), pid, rss: rss(pid), files: files(pid), waits: closeWaits(gateway.port, upstream.port, bad.port),
    running: metrics.moongate_http_inflight_requests });
}

async function probing() {
  const at = now();
  probes.push({ at, ...await probe(gateway, { seconds: probeEach * 0.6, rate: 100 }) });
}

async function turnBad(i) {
  const [name, order] = [['well', ''], ['500', 'kind=unary,status=500'], ['reset', 'kind=reset'], ['hang', 'kind=hang'],
    ['drip', 'kind=unary,piece=1,gap_ms=1000'], ['reset in the stream', 'kind=reset,events=5']][i % 6];
  modes[name] = (modes[name] ?? 0) + 1;
  // A stream that breaks after its first events cannot be tried elsewhere: only for its own callers.
  const { models } = json(await gateway.admin(`/admin/upstreams/${ids.bad}`, { method: 'PUT',
    body: { models: name === 'reset in the stream' ? ['bad'] : ['bad', 'both'] } }));
  if (!models.includes('bad')) problem('the upstream lost its models');
  await sleep(200);
  await bad.always(order);
}

async function closing() {
  await bad.closeIdle();
  happened.closes++;
}

const ask = (key) => call(`${gateway.url}/v1/chat/completions`, { key, body: { model: 'bench', messages: [{ role: 'user', content: 'bench:kind=unary;' }] } });
async function keys(i) {
  const made = json(await gateway.admin('/admin/keys', { body: { name: `soak ${i}`, upstream_ids: [ids.openai] } }));
  const good = await ask(made.key_value);
  if (good.status !== 200) problem(`a new key got ${good.status}`);
  const gone = await gateway.admin(`/admin/keys/${made.id}`, { method: 'DELETE' });
  if (gone.status !== 204) problem(`revoking gave ${gone.status}`);
  const revoked = await ask(made.key_value);
  if (revoked.status !== 401) problem(`a revoked key got ${revoked.status}`);
  happened.keys++;
}

async function reload(i) {
  if (i === 0) return;
  const seen = gateway.logged('reloaded').length;
  process.kill(pid, 'SIGHUP');
  await until(() => gateway.logged('reloaded').length > seen, 'the reload', 15000);
  happened.reloads++;
}

async function upgrade() {
  if (happened.upgrade || now() < upgradeAt) return;
  const old = pid, from = performance.now();
  happened.upgrade = { old };
  const answer = await control(gateway, 'upgrade');
  if (answer.status !== 200) throw new Error(`the upgrade: ${answer.status} ${answer.text}`);
  pid = gateway.pid = json(answer).pid;
  happened.upgrade = { old, pid, ms: Math.round(performance.now() - from) };
  until(() => !isAlive(old), 'the end of the old process', 90000).then(
    () => { happened.upgrade.ended = Math.round((performance.now() - from) / 1000); }, (error) => problem(error.message));
}

// A reload asked of a process that is handing over would be lost: one after the other.
const chores = each(1, async function chores(i) {
  await keys(i);
  if (now() > (happened.reloads + 1) * reloadEach) await reload(1);
  await upgrade();
});
const tasks = [chores, each(sampleEach, sample), each(probeEach * 0.4, probing), each(20, turnBad), each(10, closing)];
const results = await Promise.all(loads.map((one) => one.done));
isOver = true;
await Promise.all(tasks);

// --- verdicts

report.begin('soak', `mixed load for ${seconds} s`);
const jobs = results.flatMap((result) => result.jobs);
const ends = {};
for (const job of jobs) {
  const sum = ends[job.name] ??= {};
  for (const [name, count] of Object.entries({ done: job.done, aborted: job.aborted, refused: job.refused, ...job.failures }))
    if (count) sum[name] = (sum[name] ?? 0) + count;
}
for (const [name, expected] of Object.entries(EXPECTED)) {
  const seen = ends[name] ?? {};
  const strange = Object.keys(seen).filter((end) => !expected[end]);
  report.ok(`${name}: ends`, strange.length === 0 && Object.keys(seen).length > 0, JSON.stringify(seen), `of ${Object.keys(expected).join(', ')}`);
}
const lines = readFileSync(path.join(gateway.dir, 'moongate.log'), 'utf8').split('\n').filter(Boolean).map((text) => JSON.parse(text));
const classes = {}, unexplained = [];
for (const one of lines.filter((text) => text.event === 'access')) {
  const known = EXPLAINED.find(([, test]) => test(one));
  if (!known) unexplained.push(one);
  else classes[known[0]] = (classes[known[0]] ?? 0) + 1;
}
for (const [name, count] of Object.entries(classes)) report.note(`access lines: ${name}`, count);
report.ok('access lines without an explanation', unexplained.length === 0, unexplained.length
  ? `${unexplained.length}: ${JSON.stringify(unexplained.slice(0, 3).map(({ status, error_class, flags, model_requested, attempts, dur_ms }) =>
    ({ status, error_class, flags, model_requested, attempts, dur_ms })))}` : 'none');
const warnings = {};
for (const one of lines) if (['warn', 'error'].includes(one.level)) warnings[`${one.level} ${one.event}`] = (warnings[`${one.level} ${one.event}`] ?? 0) + 1;
const strange = Object.keys(warnings).filter((name) => !LOG_EVENTS[name.split(' ')[1]] || name.startsWith('error'));
report.ok('log lines of warn and error, all expected', strange.length === 0, JSON.stringify(warnings));
report.ok('what was done beside the load went well', problems.length === 0, problems.length ? problems.slice(0, 5).join('; ') : 'yes');
report.ok('keys made, used, revoked, refused', happened.keys > seconds / 10, happened.keys);
report.ok('reloads', happened.reloads >= Math.floor(seconds / reloadEach) - 2, happened.reloads);
report.ok('one upgrade, and the old process ended', Boolean(happened.upgrade?.ended), JSON.stringify(happened.upgrade ?? 'none'));
report.note('the bad upstream was', JSON.stringify(modes));

const steady = samples.filter((one) => one.at > warmUntil && one.pid === pid);
const rising = line(steady.map((one) => [one.at / 3600, one.rss / MiB]));
if (rising.hours < 0.1) report.skip('RSS does not grow', 'too short to be judged');
report.ok('RSS does not grow', rising.hours < 0.1 || !isGrowing(rising),
  `${rising.slope.toFixed(2)} ± ${(2 * rising.error).toFixed(2)} MiB/h over ${(rising.hours * 60).toFixed(1)} minutes after the warm-up ` +
  `(${steady.length} samples; noise around the line σ = ${rising.noise.toFixed(2)} MiB; at the end ${(steady.at(-1)?.rss / MiB).toFixed(1)} MiB)`,
  '24 h: < 1 MiB/h; here: no growth above its noise');
const middle = (name) => steady.map((one) => one[name]).sort((a, b) => a - b);
for (const name of ['files', 'waits', 'running']) report.note(`${{ files: 'descriptors', waits: 'CLOSE_WAIT', running: 'open exchanges' }[name]} under load`,
  `median ${middle(name)[steady.length >> 1]}, most ${middle(name).at(-1)}`);
report.ok('probes: no call failed', probes.length > 0 && probes.every((one) => one.failed === 0), `${probes.reduce((sum, one) => sum + one.count, 0)} calls`);
const half = probes.length >> 1, median = (list) => list.map((one) => one.p99).sort((a, b) => a - b)[list.length >> 1];
report.ok('p99 in the second half is not that of a gateway that slows down', median(probes.slice(half)) < Math.max(2 * median(probes.slice(0, half)), 20),
  `${median(probes.slice(half)).toFixed(2)} ms, in the first half ${median(probes.slice(0, half)).toFixed(2)} ms`);
await bad.always();
const after = await restingState(gateway, [upstream, bad], { ms: 30000 });
report.ok('afterwards: nothing under way, gauges 0, no call at the upstreams', !after.problem, after.problem ?? 'yes');
report.atMost('afterwards: descriptors above those before the load', after.files - base.files, 4);
report.atMost('afterwards: CLOSE_WAIT', after.closeWaits, 0);
try {
  await stopChain(gateway, pid);
  report.ok('it ends cleanly', true);
} catch (error) {
  report.ok('it ends cleanly', false, error.message.slice(0, 500));
}
await Promise.all([upstream.stop(), bad.stop()]);
const isGood = report.close();

if (out) {
  const every = Math.max(1, Math.floor(probes.length / 20));
  writeFileSync(out, [
    '# Soak', '', `Written by \`make soak\` (SOAK_SECONDS=${seconds}); spec/stress/soak.mjs says what runs and what is judged.`, '',
    `${new Date().toISOString().slice(0, 10)}, ${machine()}, Linux ${release()}, two workers on one core, tools on the other, durability power: ` +
    `${report.passed} passed, ${report.failed} failed, ${report.skipped} skipped.`, '',
    '| what | measured | bound | holds |', '|---|---|---|---|',
    ...report.current.rows.map((row) => `| ${row.what} | ${row.value} | ${row.bound} | ${row.verdict} |`), '',
    '## Over time', '', '| s | p50 ms | p99 ms | RSS MiB | descriptors | open exchanges | CLOSE_WAIT |', '|---|---|---|---|---|---|---|',
    ...probes.filter((_, i) => i % every === 0).map((one) => {
      const near = samples.reduce((best, two) => (Math.abs(two.at - one.at) < Math.abs(best.at - one.at) ? two : best), samples[0]);
      return `| ${one.at.toFixed(0)} | ${one.p50.toFixed(2)} | ${one.p99.toFixed(2)} | ${(near.rss / MiB).toFixed(1)} | ${near.files} | ${near.running} | ${near.waits} |`;
    }), ''].join('\n'));
}
process.exit(isGood ? 0 : 1);

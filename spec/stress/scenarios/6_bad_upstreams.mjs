// PROMISES O5. Two upstreams: one serves the model "good" alone, the other is bad in one way after
// the other. Both serve "both", the bad one first by its priority.
import { load, MiB, probe, restingState, sleep, startLoad, startServer, startUpstream, until } from '../kit.mjs';

export const about = 'one upstream hangs, fails, resets or drips; the other one must not notice';

const OPEN_SECONDS = 10; // of the breaker
const FAILURES = 5;

export async function scenario(report, { isFull, later }) {
  const good = await startUpstream(), bad = await startUpstream();
  later(() => good.stop());
  later(() => bad.stop());
  const gateway = await startServer({
    conf: { timeouts: { first_byte: 1, first_byte_stream: 1, event: 1 } },
    upstreams: {
      good: { base_url: good.url, models: ['good', 'both'] },
      bad: { base_url: bad.url, models: ['bad', 'both'], priority: 10 },
    } });
  const good_job = 'kind=unary,model=good';
  await load(gateway, ['-c', 8, '--requests', 100, '--job', good_job, '--job', 'kind=unary,model=bad']);
  const shape = isFull ? { seconds: 4, rate: 300, rounds: 3, job: good_job } : { seconds: 0.4, rate: 300, job: good_job };
  const base = await restingState(gateway, [good, bad]);

  const kinds = { hangs: 'kind=hang', 'answers 500': 'kind=unary,status=500', resets: 'kind=reset',
    'sends a byte a second': 'kind=unary,piece=1,gap_ms=1000' };
  for (const [what, order] of Object.entries(kinds)) {
    // Callers of the bad one alone, enough to fill any queue they might share: first served, then not.
    await bad.always();
    const callers = startLoad(gateway, ['--mode', 'open', '--rate', 100, '-c', 2000, '--seconds', 600, '--job', 'kind=unary,model=bad']);
    await sleep(300);
    const before = await probe(gateway, shape);
    await callers.end();
    await bad.always(order);
    const unserved = startLoad(gateway, ['--mode', 'open', '--rate', 100, '-c', 2000, '--seconds', 600, '--job', 'kind=unary,model=bad']);
    await sleep(300);
    const beside = await probe(gateway, shape);
    const result = await unserved.end();
    report.p99(`it ${what}: callers of the good one`, before, beside, isFull ? 0 : 50);
    report.ok(`it ${what}: its own callers get errors, no answers`, result.done === 0, `${result.done} answers`);
  }

  // The breaker: those who can go elsewhere do, but for one probe each 10 s.
  await bad.always();
  const heal = async () => {
    await load(gateway, ['-c', 1, '--requests', 30, '--job', 'kind=unary,model=bad']); // served: the row of failures ends
    await sleep(100);
  };
  await heal();
  await restingState(gateway, [good, bad]);
  await bad.always('kind=unary,status=500');
  const answered = async () => (await bad.stats()).answered;
  const from = await answered();
  const steady = startLoad(gateway, ['--mode', 'open', '--rate', 100, '-c', 500, '--seconds', 600, '--job', 'kind=unary,model=both']);
  await until(async () => await answered() - from >= FAILURES, 'the failures');
  await sleep(300); // calls that were under way when it opened
  const opening = performance.now(), opened = await answered();
  await sleep(isFull ? 25000 : 2000);
  const probes = await answered() - opened;
  const seconds = (performance.now() - opening) / 1000;
  report.atMost(`the breaker opens after ${FAILURES} failures: answers of the bad one until then (100 calls a second)`,
    opened - from, FAILURES + 5);
  report.ok(`open: one probe each ${OPEN_SECONDS} s`, probes <= Math.ceil(seconds / OPEN_SECONDS) && (!isFull || probes >= 1),
    `${probes} in ${seconds.toFixed(0)} s`);
  await bad.always();
  const healed = performance.now();
  const was = await answered();
  await until(async () => await answered() - was > 100, 'the calls that come back', 25000).catch(() => {});
  const back = (performance.now() - healed) / 1000;
  report.ok('it is well again: the probe closes the breaker, calls come back', await answered() - was > 100 && back < OPEN_SECONDS + 3,
    `after ${back.toFixed(1)} s`);
  const calls = await steady.end();
  report.ok('nobody who could go elsewhere got an error', calls.failed === 0 && calls.refused === 0, `${calls.done} served, ${calls.failed} failed`);
  report.backToBase(base, await restingState(gateway, [good, bad], isFull ? { rssBound: base.rss + 16 * MiB } : {}), 16);
  await gateway.stop();
}

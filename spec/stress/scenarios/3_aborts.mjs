// Clients that leave at every stage, by FIN and by RST, spread by a seed; others go on.
import { load, MiB, probe, restingState, sleep, startLoad, startServer, startUpstream } from '../kit.mjs';

export const about = 'clients that give up at every stage, half by RST and half by FIN, from one seed';

// What the call is when its client leaves there. Calls that never end by themselves show whether
// the upstream's part is given up, too.
const STAGES = {
  connect: 'kind=unary', head: 'kind=unary', body: 'kind=unary,body=20000', sent: 'kind=hang,abort_ms=5',
  first: 'kind=idle', mid: 'kind=events,gap_ms=1,events=100000,abort_bytes=2000', end: 'kind=burst,events=20',
};

export async function scenario(report, { isFull, later }) {
  const total = Number(process.env.STRESS_ABORTS ?? (isFull ? 100000 : 2400));
  const rate = isFull ? 1000 : 600, seed = Number(process.env.STRESS_SEED ?? 7);
  const upstream = await startUpstream();
  later(() => upstream.stop());
  const gateway = await startServer({ upstreams: { bench: { base_url: upstream.url, is_default: true } } });
  const jobs = Object.entries(STAGES).flatMap(([stage, order]) => ['0', '1'].flatMap((fin) =>
    ['--job', `name=${stage}-${fin === '1' ? 'fin' : 'rst'},abort=${stage},fin=${fin},${order}`]));
  const flood = (count) => ['--mode', 'open', '--rate', rate, '--poisson', '-c', 4000, '--requests', count, '--seconds', 600,
    '--seed', seed, ...jobs];
  await load(gateway, flood(Math.min(4000, total / 3)));
  const shape = isFull ? { seconds: 8, rate: 300, rounds: 3 } : { seconds: 1, rate: 300 };
  const base = await restingState(gateway, [upstream]);
  const alone = await probe(gateway, shape);
  // The base for others: beside as many calls on as many new connections that are not given up.
  const whole = startLoad(gateway, ['--mode', 'open', '--rate', rate, '--poisson', '-c', 4000, '--seconds', 600, '--reconnect',
    '--seed', seed, '--job', 'kind=unary,weight=4', '--job', 'kind=unary,body=20000', '--job', 'kind=events,events=20,weight=2']);
  await sleep(500);
  const before = await probe(gateway, shape);
  await whole.end();

  await restingState(gateway, [upstream]);
  const counted = await upstream.stats();
  const run = startLoad(gateway, flood(total));
  await sleep(500);
  const beside = await probe(gateway, shape);
  const result = await run.done;
  const aborted = Object.fromEntries(Object.keys(STAGES).map((stage) =>
    [stage, result.jobs.filter((job) => job.name.startsWith(`${stage}-`)).reduce((sum, job) => sum + job.aborted, 0)]));
  report.ok(`${total} exchanges given up`, result.aborted >= total * 0.99, `${result.aborted}: ${JSON.stringify(aborted)}`);
  report.ok('each stage, by FIN and by RST', result.jobs.length === 14 && result.jobs.every((job) => job.aborted > total / 40),
    result.jobs.map((job) => job.aborted).join(' '));
  report.ok('no exchange failed otherwise', result.failed === 0 && result.done === 0,
    JSON.stringify(result.jobs.filter((job) => Object.keys(job.failures).length).map((job) => [job.name, job.failures])));
  report.note("others' p99 when nobody else is there", `${alone.p99.toFixed(2)} ms`);
  report.p99("others, beside as many whole calls", before, beside, isFull ? 0 : 50);
  const after = await restingState(gateway, [upstream], isFull ? { rssBound: base.rss + 16 * MiB } : {});
  const { cut } = await upstream.stats();
  const running = aborted.sent + aborted.first + aborted.mid;
  report.ok('upstream calls given up with their clients: those that were under way',
    cut - counted.cut >= running * 0.99, `${cut - counted.cut} of ${running}`);
  report.backToBase(base, after, isFull ? 16 : 12);
  report.note('RSS at base / afterwards', `${(base.rss / MiB).toFixed(1)} / ${(after.rss / MiB).toFixed(1)} MiB`);
  const bad = gateway.logged().filter((line) => line.level === 'error');
  report.ok('no error in the log', bad.length === 0, bad.length ? JSON.stringify(bad[0]) : 'none');
  await gateway.stop();
}

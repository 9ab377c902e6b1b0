// PROMISES S5, PERFORMANCE "RSS per idle stream". Each stream costs the gateway two descriptors.
import { hardFiles, load, MiB, probe, restingState, rss, startLoad, startServer, startUpstream, workOver } from '../kit.mjs';

export const about = 'many open streams with one event every 15 s (short form: every 1.5 s)';

export async function scenario(report, { isFull, later }) {
  const possible = Math.floor((hardFiles - 1000) / 2), count = isFull ? Math.min(9500, possible) : Math.min(400, possible);
  report.note('streams', `${count} (the machine allows ${hardFiles} descriptors per process)`);
  const gap = isFull ? 15000 : 1500;
  const upstream = await startUpstream();
  later(() => upstream.stop());
  const gateway = await startServer({ upstreams: { bench: { base_url: upstream.url, is_default: true } } });
  await load(gateway, ['-c', 8, '--requests', 100, '--job', 'kind=unary', '--job', 'kind=events,events=3']);
  const shape = isFull ? { seconds: 5, rate: 300, rounds: 3 } : { seconds: 0.8, rate: 300 };
  const direct = await probe(gateway, { ...shape, port: upstream.port, key: '' });
  const alone = await probe(gateway, shape);
  const base = await restingState(gateway, [upstream]);

  const streams = startLoad(gateway, ['--mode', 'hold', '-c', count, '--ramp', Math.max(0.5, count / 1000), '--settle', 1,
    '--seconds', 900, '--timeout', 60, '--job', `kind=events,gap_ms=${gap},events=1000`]);
  const open = await streams.first();
  report.ok(`${count} streams open`, open.held === count, `${open.held} ${JSON.stringify(open.why)}`);
  const each = (rss(gateway.pid) - base.rss) / count / 1024;
  report.atMost('RSS of each stream', each, 48, 'KiB');
  report.atMost('RSS of each stream (PERFORMANCE, in KB)', each * 1.024, isFull ? 20 : 48, 'KB');
  const busy = await workOver(gateway.pid, gap / 1000 * (isFull ? 2 : 1));
  report.atMost('CPU', busy.percent, 25, '% of a core', 2);
  const beside = await probe(gateway, shape);
  report.note('unary p99: upstream itself / gateway alone / beside the streams',
    `${direct.p99.toFixed(2)} / ${alone.p99.toFixed(2)} / ${beside.p99.toFixed(2)} ms`);
  report.ok('calls beside the streams that failed', beside.failed === 0, beside.failed);
  report.atMost('added p99 of a fresh call beside the streams', beside.p99 - direct.p50, isFull ? 10 : 50, 'ms', 2);
  const result = await streams.end();
  report.ok('no stream was lost', result.lost === 0, result.lost);
  const tolerance = isFull ? 32 : 16;
  report.backToBase(base, await restingState(gateway, [upstream], isFull ? { rssBound: base.rss + tolerance * MiB } : {}), tolerance);
  report.note('RSS: base / with the streams', `${(base.rss / MiB).toFixed(1)} / ${((base.rss + each * 1024 * count) / MiB).toFixed(1)} MiB`);
  await gateway.stop();
}

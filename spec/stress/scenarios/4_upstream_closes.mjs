// Connections that the upstream closes while they wait for the next call.
import { closeWaits, files, load, MiB, probe, restingState, sleep, startServer, startUpstream, until, workOver } from '../kit.mjs';

export const about = 'idle upstream connections that the upstream closes, many at once';

export async function scenario(report, { isFull, later }) {
  const wanted = isFull ? 10000 : 500, atOnce = isFull ? 1000 : 250;
  const upstream = await startUpstream();
  later(() => upstream.stop());
  const gateway = await startServer({ upstreams: { bench: { base_url: upstream.url, is_default: true } } });
  await load(gateway, ['-c', 50, '--requests', 100, '--job', 'kind=unary,delay_ms=50']);
  const base = await restingState(gateway, [upstream]);
  let closed = 0, mostWaits = 0, most = 0;
  for (let round = 0; closed < wanted && round < 3 * wanted / atOnce; round++) {
    // So many at the same time, so that so many connections are kept afterwards.
    await load(gateway, ['--mode', 'hold', '-c', atOnce, '--ramp', 0.1, '--seconds', 0.1, '--job', `kind=unary,delay_ms=${isFull ? 1500 : 500}`]);
    const kept = (await upstream.stats()).open - 1;
    most = Math.max(most, kept);
    await upstream.closeIdle();
    closed += kept;
    const waits = () => closeWaits(upstream.port);
    await until(() => waits() === 0, 'no CLOSE_WAIT', 1000).catch(() => {});
    mostWaits = Math.max(mostWaits, waits());
  }
  report.ok(`${wanted} connections closed while idle`, closed >= wanted, `${closed}, at most ${most} at once`);
  report.atMost('CLOSE_WAIT within a second of each time', mostWaits, 0);
  const busy = await workOver(gateway.pid, isFull ? 5 : 1);
  report.atMost('CPU afterwards', busy.percent, 1, '% of a core', 2);
  report.atMost('descriptors', files(gateway.pid), base.files);
  await sleep(100);
  const next = await probe(gateway, { seconds: 0.5, rate: 200 });
  report.ok('the next calls are served', next.failed === 0 && next.count > 50, `${next.count} served, ${next.failed} failed`);
  report.backToBase(base, await restingState(gateway, [upstream], isFull ? { rssBound: base.rss + 24 * MiB } : {}), isFull ? 24 : 12);
  await gateway.stop();
}

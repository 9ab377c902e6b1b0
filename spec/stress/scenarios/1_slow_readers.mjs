// PROMISES S4. A slow reader has a receive buffer of 8 KiB, so that its kernel does not read for it.
import { kernelMemory, load, MiB, restingState, rss, sleep, startLoad, startServer, startUpstream, until, workOver } from '../kit.mjs';

export const about = 'many clients that read 64 MiB streams at 1 KiB/s, then clients that stop reading';

const KiB = 1024;

export async function scenario(report, { isFull, later }) {
  const count = isFull ? 1000 : 60, tolerance = isFull ? 32 : 16;
  const waiting = (base) => (isFull ? { rssBound: base.rss + tolerance * MiB } : {});
  const upstream = await startUpstream();
  later(() => upstream.stop());
  const start = async (stall) => {
    const gateway = await startServer({ conf: { timeouts: { client_write: stall } },
      upstreams: { bench: { base_url: upstream.url, is_default: true } } });
    await load(gateway, ['-c', 8, '--requests', 40, '--job', 'kind=flood,total=4194304', '--job', 'kind=unary']);
    return { gateway, base: await restingState(gateway, [upstream]) };
  };
  // Until all buffers are full: no more comes from the upstream.
  const full = () => {
    let last = -1;
    return until(async () => {
      const { bytes_out: now } = await upstream.stats(), is = now === last;
      last = now;
      await sleep(200);
      return is;
    }, 'full buffers', 60000);
  };
  const hold = (gateway, rate) => startLoad(gateway, ['--mode', 'hold', '-c', count, '--ramp', isFull ? 4 : 0.5,
    '--settle', 0.5, '--seconds', 600, '--timeout', 60, '--job', `kind=flood,read=${rate}`]);

  // They read, slowly: longer than the timer for stalled writers, and none may be cut.
  const stall = isFull ? 20 : 3, rate = isFull ? KiB : 16 * KiB;
  {
    const { gateway, base } = await start(stall);
    const before = await upstream.stats(), kernelBefore = kernelMemory();
    const readers = hold(gateway, rate);
    const open = await readers.first();
    report.ok(`${count} streams open`, open.held === count, open.held);
    await full();
    const grown = rss(gateway.pid) - base.rss;
    report.atMost('RSS growth for each', grown / count / KiB, 256 + 64, 'KiB');
    report.atMost('RSS growth together', grown / MiB, count * (256 + 64) / KiB, 'MiB');
    const kernel = (kernelMemory() - kernelBefore) / count / KiB;
    report.note('memory of the kernel for the sockets of each: client, gateway twice, upstream', `${kernel.toFixed(0)} KiB`);
    const sent = async () => ((await upstream.stats()).bytes_out - before.bytes_out) / MiB;
    const first = await sent();
    const busy = await workOver(gateway.pid, isFull ? 10 : 1);
    const then = await sent();
    report.note('sent by the upstream, kernel buffers of three sockets included', `${(first / count).toFixed(2)} MiB for each of 64 MiB`);
    report.atMost('sent by the upstream for each', first / count, 16, 'MiB', 2);
    report.atMost('the upstream is paused: sent more meanwhile, for each', Math.max(0, then - first) / count, 0.25, 'MiB', 3);
    report.atMost('CPU while they read', busy.percent, 5, '% of a core', 2);
    await sleep(stall * (isFull ? 1500 : 700));
    const result = await readers.end();
    report.ok(`after more than ${stall} s (the timer for stalled writers) all are there, for they do move`, result.lost === 0,
      `${result.lost} lost`);
    report.backToBase(base, await restingState(gateway, [upstream], waiting(base)), tolerance);
    await gateway.stop();
  }

  // They stop: cut by the timer, neither long before nor long after.
  {
    const short = isFull ? 10 : 2.5;
    const { gateway, base } = await start(short);
    const began = performance.now();
    const readers = startLoad(gateway, ['--mode', 'hold', '-c', count, '--ramp', 0.2, '--settle', 0.1, '--seconds', 600,
      '--timeout', 60, '--job', 'kind=flood,stall=1']);
    const open = await readers.first();
    report.ok(`${count} streams open`, open.held === count, open.held);
    await full();
    const fullAt = performance.now();
    const busy = await workOver(gateway.pid, Math.max(0.5, short * 0.9 - 0.3 - (performance.now() - began) / 1000));
    report.atMost('CPU while all are stalled', busy.percent, 1, '% of a core', 2);
    const inFlight = async () => (await gateway.metrics()).moongate_http_inflight_requests;
    report.ok('none is cut early', await inFlight() === count, await inFlight());
    await until(async () => await inFlight() === 0, 'the end of all', short * 3000).catch(() => {});
    const took = (performance.now() - began) / 1000, afterFull = (performance.now() - fullAt) / 1000;
    report.ok(`stalled writers are cut after ${short} s`, await inFlight() === 0 && took > short * 0.9 && afterFull < short * 1.3,
      `all gone ${afterFull.toFixed(1)} s after the last progress at the latest, ${await inFlight()} left`);
    const result = await readers.end();
    report.ok('every client sees a cut, no end', result.done === 0, `${result.done} ended whole`);
    report.backToBase(base, await restingState(gateway, [upstream], waiting(base)), tolerance);
    await gateway.stop();
  }
}

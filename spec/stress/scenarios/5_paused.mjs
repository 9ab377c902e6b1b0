// A transfer whose client does not read: the upstream's bytes wait in the kernel, readable, and the
// worker must not be woken by them.
import { load, restingState, sleep, startLoad, startServer, startUpstream, until, workOver } from '../kit.mjs';

export const about = 'paused transfers with unread data';

export async function scenario(report, { isFull, later }) {
  const upstream = await startUpstream();
  later(() => upstream.stop());
  const gateway = await startServer({ upstreams: { bench: { base_url: upstream.url, is_default: true } } });
  await load(gateway, ['-c', 8, '--requests', 40, '--job', 'kind=unary']);
  const base = await restingState(gateway, [upstream]);
  const idle = await workOver(gateway.pid, isFull ? 5 : 1);
  for (const count of [1, 50]) {
    const held = startLoad(gateway, ['--mode', 'hold', '-c', count, '--ramp', 0.1, '--seconds', 600, '--job', 'kind=flood,stall=1']);
    await held.first();
    let last = -1;
    await until(async () => {
      const { bytes_out: now } = await upstream.stats(), is = now === last;
      last = now;
      await sleep(200);
      return is;
    }, 'full buffers', 30000);
    const busy = await workOver(gateway.pid, isFull ? 10 : 1);
    report.atMost(`CPU with ${count} paused, above that of the idle process (${idle.percent.toFixed(3)} %)`,
      Math.max(0, busy.percent - idle.percent), 0.5, '% of a core', 3);
    report.atMost(`wakes a second with ${count} paused, above the idle process's ${idle.wakes.toFixed(0)}`,
      Math.max(0, busy.wakes - idle.wakes), 10, '', 1);
    await held.end();
  }
  report.backToBase(base, await restingState(gateway, [upstream]), 24);
  await gateway.stop();
}

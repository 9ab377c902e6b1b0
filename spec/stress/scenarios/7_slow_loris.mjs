// PROMISES F2. A request that comes byte by byte is closed by the timer of its head, however many
// there are, and nobody else is kept waiting.
import { load, probe, restingState, sleep, startLoad, startServer, startUpstream, until } from '../kit.mjs';

export const about = 'slow-loris: connections whose request comes a byte at a time';

export async function scenario(report, { isFull, later }) {
  const count = isFull ? 1000 : 300, header = isFull ? 10 : 2, drip = isFull ? 5000 : 200;
  const upstream = await startUpstream();
  later(() => upstream.stop());
  const gateway = await startServer({ conf: { timeouts: { client_header: header } },
    upstreams: { bench: { base_url: upstream.url, is_default: true } } });
  await load(gateway, ['-c', 8, '--requests', 200, '--job', 'kind=unary']);
  const base = await restingState(gateway, [upstream]);
  const shape = isFull ? { seconds: 2, rate: 300, rounds: 3 } : { seconds: 0.8, rate: 300 };
  const before = await probe(gateway, shape);
  const began = performance.now();
  const loris = startLoad(gateway, ['--mode', 'hold', '-c', count, '--ramp', 0.2, '--seconds', 1, '--timeout', header * 3,
    '--job', `kind=unary,drip_ms=${drip}`]);
  const connections = async () => (await gateway.metrics()).moongate_connections;
  await until(async () => await connections() >= count, 'the crowd', 5000).catch(() => {});
  report.ok(`${count} connections, a byte each ${drip} ms`, await connections() >= count, await connections());
  const beside = await probe(gateway, shape);
  report.p99('others', before, beside, isFull ? 0 : 50);
  report.ok('all of them were there meanwhile', await connections() >= count, await connections());
  await until(async () => await connections() === 0, 'the end of all', header * 2000).catch(() => {});
  const took = (performance.now() - began) / 1000;
  report.ok(`all are closed by the timer of ${header} s`, await connections() === 0 && took > header * 0.9 && took < header * 1.2 + 1.2,
    `after ${took.toFixed(1)} s, ${await connections()} left`);
  const { why } = await loris.first();
  report.ok('each was told so: 408', why.status_4xx === count, JSON.stringify(why));
  await loris.end();
  report.backToBase(base, await restingState(gateway, [upstream]), 12);
  await gateway.stop();
}

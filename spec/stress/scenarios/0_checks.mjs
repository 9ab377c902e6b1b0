// What these tests judge by, held against cases that must fail.
import net from 'node:net';
import { closeWaits, Report, sleep } from '../kit.mjs';
import { isGrowing, line } from '../slope.mjs';

export const about = 'the checks themselves can fail';

export async function scenario(report) {
  const minutes = (rise, noise) => Array.from({ length: 180 }, (_, i) =>
    [i / 720, 60 + rise * i / 720 + noise * Math.sin(i * 12.9898)]);
  report.ok('a leak of 40 MiB an hour is seen through noise', isGrowing(line(minutes(40, 2))));
  report.ok('noise alone is none', !isGrowing(line(minutes(0, 2))) && !isGrowing(line(minutes(0.5, 0.1))));
  report.ok('the slope is the slope', Math.abs(line(minutes(40, 0)).slope - 40) < 1e-6);

  const write = process.stdout.write;
  process.stdout.write = () => true; // these failures are no failures
  const other = new Report();
  other.begin('x', 'x');
  other.atMost('x', 2, 1);
  other.p99('x', { p50: 1, p99: 1 }, { p50: 1, p99: 2.1, failed: 0 }, 0);
  other.p99('x', { p50: 1, p99: 1 }, { p50: 1, p99: 1.9, failed: 1 }, 0);
  other.backToBase({ files: 1, rss: 0 }, { files: 2, rss: 2e7, closeWaits: 1, problem: 'x' }, 1);
  process.stdout.write = write;
  report.ok('bounds, p99, failed calls and every part of the base', other.failed === 7 && other.passed === 1, `${other.failed} of 7`);

  // A server that does not close when its client has.
  const server = net.createServer({ allowHalfOpen: true }, (socket) => socket.on('error', () => {}).resume());
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  const { port } = server.address(), client = net.connect(port, '127.0.0.1');
  await new Promise((resolve) => { client.on('connect', resolve); });
  client.end();
  await sleep(100);
  report.ok('a socket in CLOSE_WAIT is seen', closeWaits(port) === 1, closeWaits(port));
  client.destroy();
  server.close();
  server.closeAllConnections?.();
}

#!/usr/bin/env node
// The whole proof: 50 upgrades and 1,000 reloads under 2,000 calls a second (PROMISES O2, O3).
// spec/upgrade/prove.mjs BUILD_DIR [upgrades] [reloads]     RATE, TIMES: other numbers
// Prints the figures as a table in Markdown; ends with 1 when anything was lost.
import { cpus } from 'node:os';
import { execFileSync } from 'node:child_process';
import path from 'node:path';

const [buildDir, ...what] = process.argv.slice(2);
if (!buildDir) {
  console.error('usage: spec/upgrade/prove.mjs BUILD_DIR [upgrades] [reloads]');
  process.exit(2);
}
process.env.MOONGATE_BUILD = path.resolve(buildDir);
const { proveReloads, proveUpgrades } = await import('./proof.mjs');
const rate = Number(process.env.RATE ?? 2000);
const tell = (text) => process.stderr.write(`${text}\n`);
let isGood = true;

function show(title, seen, more) {
  const rows = [
    ['calls begun / answered', `${seen.started} / ${seen.answered}`],
    ['of them streams (2 s each)', seen.streams],
    ['refused, reset, unanswered, cut', `${seen.refused}, ${seen.reset}, ${seen.unanswered}, ${seen.cut}`],
    ['not 200, streams without their end', `${seen.bad_status}, ${seen.bad_stream}`],
    ['log rows / different / good', `${seen.rows.rows} / ${seen.rows.distinct} / ${seen.rows.good}`],
    ['connections opened / ended by `Connection: close` / closed idle', `${seen.connections} / ${seen.said_close} / ${seen.closed_idle}`],
    ['seconds, calls sent more than 100 ms late', `${seen.seconds}, ${seen.late}`],
    ['latency p50 / p99 / p99.9', `${seen.p50_ms} / ${seen.p99_ms} / ${seen.p999_ms} ms`],
    ...more,
  ];
  console.log(`## ${title}\n\n| | |\n|---|---|\n${rows.map((row) => `| ${row.join(' | ')} |`).join('\n')}\n`);
  const isWhole = seen.failed === 0 && seen.answered === seen.started &&
    ['rows', 'distinct', 'good'].every((name) => seen.rows[name] === seen.answered);
  isGood &&= isWhole;
  if (!isWhole) console.log('**not whole**\n');
}

console.log(`${new Date().toISOString().slice(0, 10)}, ${cpus().length} × ${cpus()[0].model}, ` +
  `Linux ${execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim()}, 2 workers, load, upstream and gateway together\n`);
if (!what.length || what.includes('upgrades')) {
  const times = Number(process.env.TIMES ?? 50);
  const seen = await proveUpgrades({ times, rate, noGuard: true, tell });
  show(`${times} upgrades, ${rate} calls a second`, seen, [
    ['verb to answer, median / most', `${seen.upgrade_ms.median} / ${seen.upgrade_ms.most} ms`],
    ['the last process', `${seen.last_process.rss_kib} KiB, ${seen.last_process.fds} descriptors`],
    ['records in quarantine', seen.quarantined],
  ]);
  isGood &&= seen.quarantined === 0;
}
if (!what.length || what.includes('reloads')) {
  const times = Number(process.env.TIMES ?? 1000);
  const seen = await proveReloads({ times, rate, noGuard: true, tell });
  show(`${times} reloads (SIGHUP), ${rate} calls a second`, seen, [
    ['reloads that failed', seen.failed_reloads],
    [`after ${seen.warm} reloads`, `${seen.before.rss_kib} KiB, ${seen.before.fds} descriptors, ${seen.before.files} of them no sockets`],
    [`after ${times}`, `${seen.after.rss_kib} KiB, ${seen.after.fds} descriptors, ${seen.after.files} of them no sockets`],
  ]);
  isGood &&= seen.failed_reloads === 0;
}
process.exit(isGood ? 0 : 1);

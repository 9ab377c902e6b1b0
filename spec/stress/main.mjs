// Runs the scenarios one after the other; see run.
import { readdirSync, writeFileSync } from 'node:fs';
import { release } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { hardFiles, machine, Report } from './kit.mjs';

const dir = path.join(path.dirname(fileURLToPath(import.meta.url)), 'scenarios');
const args = process.argv.slice(2);
const isFull = args.includes('--full');
const reportAt = args.indexOf('--report');
const reportFile = reportAt >= 0 ? args[reportAt + 1] : undefined;
const names = args.filter((arg, i) => !arg.startsWith('--') && (reportAt < 0 || i !== reportAt + 1));
const report = new Report();
const began = Date.now();

const scenarios = readdirSync(dir).filter((file) => file.endsWith('.mjs')).sort()
  .filter((file) => !names.length || names.some((name) => file.includes(name)));
for (const file of scenarios) {
  const { about, scenario } = await import(path.join(dir, file));
  const from = Date.now();
  report.begin(file.replace(/^\d+_|\.mjs$/g, '').replaceAll('_', ' '), about);
  const cleanUps = [];
  try {
    await scenario(report, { isFull, later: (cleanUp) => cleanUps.push(cleanUp) });
  } catch (error) {
    report.ok('the scenario ran to its end', false, String(error?.stack ?? error).split('\n').slice(0, 6).join(' | '));
  }
  for (const cleanUp of cleanUps.reverse()) {
    try {
      await cleanUp();
    } catch (error) {
      report.ok('it ended cleanly', false, String(error?.message ?? error).slice(0, 1000));
    }
  }
  report.current.seconds = (Date.now() - from) / 1000;
  console.log(`(${report.current.seconds.toFixed(1)} s)`);
}

if (reportFile) {
  const lines = ['# Stress: floods, slow readers, idle streams, bad upstreams', '',
    `Written by \`${isFull ? 'make stress' : 'spec/stress/run'}\` (spec/stress/README.md says what each line means).`, '',
    `${new Date().toISOString().slice(0, 10)}, ${machine()}, Linux ${release()}, at most ${hardFiles.toLocaleString('en-US')} descriptors ` +
    `per process, one worker on a core of its own, tools on the other, plain HTTP on loopback; ${Math.round((Date.now() - began) / 1000)} s; ` +
    `${report.passed} passed, ${report.failed} failed, ${report.skipped} skipped.`, ''];
  for (const one of report.scenarios) {
    lines.push(`## ${one.name}`, '', one.about, '', '| what | measured | bound | holds |', '|---|---|---|---|');
    for (const row of one.rows) lines.push(`| ${row.what} | ${row.value} | ${row.bound} | ${row.verdict} |`);
    lines.push('', `${one.seconds.toFixed(0)} s`, '');
  }
  writeFileSync(reportFile, `${lines.join('\n').trimEnd()}\n`);
}
process.exit(report.close() ? 0 : 1);

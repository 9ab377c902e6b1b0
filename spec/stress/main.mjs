// Runs the scenarios one after the other; see run.
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
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
  report.current.begun = new Date(from);
  report.current.seconds = (Date.now() - from) / 1000;
  console.log(`(${report.current.seconds.toFixed(1)} s)`);
}

// A run of some scenarios replaces their sections only.
if (reportFile) {
  const section = (one) => [`## ${one.name}`, '', `${one.about[0].toUpperCase()}${one.about.slice(1)}.`, '',
    '| what | measured | bound | holds |', '|---|---|---|---|',
    ...one.rows.map((row) => `| ${row.what} | ${row.value} | ${row.bound} | ${row.verdict} |`), '',
    `${one.begun.toISOString().slice(0, 16).replace('T', ' ')} UTC, ${one.seconds.toFixed(0)} s`].join('\n');
  const sections = new Map();
  if (names.length && existsSync(reportFile)) {
    for (const text of readFileSync(reportFile, 'utf8').trimEnd().split(/\n\n(?=## )/).slice(1))
      sections.set(/^## (.*)/.exec(text)[1], text);
  }
  for (const one of report.scenarios) sections.set(one.name, section(one));
  writeFileSync(reportFile, `${['# Stress: floods, slow readers, idle streams, bad upstreams',
    `Written by \`${isFull ? 'make stress' : 'spec/stress/run BUILD_DIR'}\`; [spec/stress/README.md](../spec/stress/README.md) says what is judged.`,
    `${machine()}, Linux ${release()}, at most ${hardFiles.toLocaleString('en-US')} descriptors per process; one worker on a core of its own, ` +
    'tools on the other, plain HTTP on loopback, durability process.', ...sections.values()].join('\n\n')}\n`);
}
process.exit(report.close() ? 0 : 1);

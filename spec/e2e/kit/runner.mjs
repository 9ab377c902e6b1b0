// Runs the test files, two at a time, and counts single tests. Arguments: parts of file names.
import { run } from 'node:test';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import path from 'node:path';

const dir = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');
const wanted = process.argv.slice(2);
const files = readdirSync(dir)
  .filter((name) => name.endsWith('.test.mjs'))
  .filter((name) => wanted.length === 0 || wanted.some((part) => name.includes(part)))
  .sort()
  .map((name) => path.join(dir, name));

let passed = 0, failed = 0, skipped = 0;
const began = Date.now();
const seconds = () => ((Date.now() - began) / 1000).toFixed(1);

// A suite counts by its tests, a file only when it failed as such.
const isLeaf = (data) => data.details?.type !== 'suite' && !files.includes(data.name);

function explain(error) {
  const cause = error?.cause ?? error;
  return String(cause?.stack ?? cause?.message ?? cause).split('\n').slice(0, 25).join('\n    ');
}

const stream = run({ files, concurrency: Number(process.env.E2E_JOBS ?? 2), timeout: 150000 });
stream.on('test:pass', (data) => {
  if (!isLeaf(data) && data.skip === undefined) return; // a suite left out tells of no tests
  if (data.skip !== undefined && data.skip !== false) {
    skipped++;
    console.log(`skipped: ${data.name} (${data.skip})`);
  } else {
    passed++;
    if (process.env.E2E_VERBOSE) console.log(`ok ${seconds()} ${data.name}`);
  }
});
stream.on('test:fail', (data) => {
  // A suite fails with its tests; its own failure counts when a hook of it failed.
  const type = data.details?.error?.failureType;
  if (data.details?.type === 'suite' && type === 'subtestsFailed') return;
  if (files.includes(data.name) && type === 'subtestsFailed') return;
  failed++;
  const where = data.file ? path.basename(data.file) : '';
  console.log(`FAILED: ${where}: ${data.name}\n    ${explain(data.details?.error)}`);
});
stream.on('test:diagnostic', (data) => {
  const known = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) /.test(data.message);
  const more = /^skipped more: (\d+)/.exec(data.message);
  if (more) skipped += Number(more[1]);
  if (!known) console.log(`${data.message}`);
});
stream.on('test:stdout', (data) => {
  if (process.env.E2E_VERBOSE) process.stdout.write(data.message);
});
stream.on('test:stderr', (data) => process.stdout.write(data.message));
stream.on('end', finish);
stream.on('close', finish);
stream.resume();

let isFinished = false;
function finish() {
  if (isFinished) return;
  isFinished = true;
  console.log(`(${seconds()} s)`);
  console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
  process.exit(failed === 0 && passed > 0 ? 0 : 1);
}

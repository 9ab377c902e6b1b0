// Every recording of the three dialects over real sockets: whole, in 20 seeded splits, bytewise when
// small. The client gets the same bytes, the log the usage that a plain reading gives.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import http from 'node:http';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { call, json, until } from './kit/http.mjs';
import { ownRecordings, recordings, startFake, startGateway, stopAll } from './kit/kit.mjs';
import { readBody, readStream, withoutUsageChunks } from './kit/oracle.mjs';

const PATHS = { chat: '/v1/chat/completions', completions: '/v1/completions', embeddings: '/v1/embeddings',
  responses: '/v1/responses', messages: '/v1/messages' };
const SPLITS = Number(process.env.E2E_SPLITS ?? 20);
const JOBS = 12;

function findRecordings(root) {
  const found = [];
  const walk = (dir) => {
    for (const entry of readdirSync(path.join(root, dir), { withFileTypes: true })) {
      if (entry.isDirectory()) walk(path.join(dir, entry.name));
    }
    const meta = path.join(root, dir, 'meta.json');
    if (!existsSync(meta)) return;
    const { api, status } = JSON.parse(readFileSync(meta, 'utf8'));
    const sse = path.join(root, dir, 'response.sse'), body = path.join(root, dir, 'response.json');
    const isStream = existsSync(sse);
    if (!PATHS[api] || (!isStream && !existsSync(body))) return;
    const expect = path.join(root, dir, 'expect.json');
    found.push({ dir, api, status: status ?? 200, isStream, bytes: readFileSync(isStream ? sse : body),
      expect: existsSync(expect) ? JSON.parse(readFileSync(expect, 'utf8')) : undefined });
  };
  if (existsSync(root)) walk('');
  return found;
}

const own = findRecordings(ownRecordings), shared = findRecordings(recordings);

function request(recording, options, includeUsage = true) {
  const body = { model: `play:${recording.dir}${options ? `#${options}` : ''}`, stream: recording.isStream };
  if (recording.api === 'messages') body.max_tokens = 1000;
  if (recording.api === 'chat' || recording.api === 'messages') body.messages = [{ role: 'user', content: 'Say it.' }];
  else if (recording.api === 'completions') body.prompt = 'Say it.';
  else body.input = 'Say it.';
  const isOpenai = recording.api === 'chat' || recording.api === 'completions';
  if (recording.isStream && isOpenai && includeUsage) body.stream_options = { include_usage: true };
  if (recording.api === 'embeddings') delete body.stream;
  return body;
}

// The first place where two texts differ, readable.
function difference(wanted, got) {
  let at = 0;
  while (at < wanted.length && at < got.length && wanted[at] === got[at]) at++;
  const show = (bytes) => JSON.stringify(bytes.subarray(Math.max(0, at - 30), at + 60).toString('latin1'));
  return `differs at byte ${at} of ${wanted.length}/${got.length}: wanted ${show(wanted)} got ${show(got)}`;
}

// A hand-made recording says itself what it should give.
function expectedUsage({ expect }) {
  if (!expect?.usage) return undefined;
  const sum = (...names) => names.reduce((total, name) => total + (expect.usage[name] ?? 0), 0);
  return { prompt: sum('input', 'cache_read', 'cache_write_5m', 'cache_write_1h', 'audio_in', 'image_in'),
    completion: sum('output', 'reasoning', 'audio_out'), cache_read: sum('cache_read'),
    cache_write: sum('cache_write_5m', 'cache_write_1h') };
}

// '' or what is wrong.
function judge(recording, answer) {
  const text = recording.bytes.toString('utf8');
  const read = recording.isStream ? readStream(recording.api, text) : readBody(recording.api, text);
  if (recording.expect?.may_end !== undefined) read.isDone = recording.expect.may_end;
  const same = answer.body.equals(recording.bytes);
  if (recording.status >= 400) {
    const keeps = [400, 404, 413, 422, 429].includes(recording.status);
    if (keeps && answer.status !== recording.status) return `status ${answer.status}, wanted ${recording.status}`;
    if (!keeps && answer.status < 500) return `status ${answer.status} for the upstream's ${recording.status}`;
    const error = json(answer).error;
    return error && typeof error.message === 'string' ? '' : `not an error body: ${answer.text.slice(0, 200)}`;
  }
  if (answer.status !== 200) {
    const mayFail = read.hasError || read.isBroken || (recording.isStream && !read.isDone);
    return mayFail && answer.status >= 400 ? '' : `status ${answer.status}: ${answer.text.slice(0, 300)}`;
  }
  if (recording.isStream && !read.isDone && !read.hasError) {
    const begins = answer.body.subarray(0, recording.bytes.length).equals(recording.bytes);
    const rest = answer.body.subarray(recording.bytes.length).toString('utf8');
    if (!begins) return `the cut stream ${difference(recording.bytes, answer.body)}`;
    return /error|failed/.test(rest) ? '' : `a cut stream ended as if it was whole: ${JSON.stringify(rest)}`;
  }
  return same && answer.ended === 'clean' ? '' : `${answer.ended}, ${difference(recording.bytes, answer.body)}`;
}

async function inParallel(jobs, run) {
  let next = 0;
  await Promise.all(Array.from({ length: JOBS }, async () => {
    while (next < jobs.length) await run(jobs[next++]);
  }));
}

function assertNone(problems) {
  assert.equal(problems.length, 0, `${problems.length} wrong, such as\n${problems.slice(0, 12).join('\n')}`);
}

describe('recordings over sockets', () => {
  let fake, gateway;
  const agent = new http.Agent({ keepAlive: true, maxSockets: JOBS });

  before(async () => {
    fake = await startFake();
    gateway = await startGateway();
    await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true });
    await gateway.upstream({ name: 'ant', provider: 'anthropic', base_url: fake.url });
  });
  after(async () => {
    agent.destroy();
    await stopAll(gateway, fake);
  });

  const send = (recording, options, includeUsage) => gateway.call(PATHS[recording.api],
    { body: request(recording, options, includeUsage), key: gateway.key, agent });

  for (const [name, list] of [['own', own], ['shared', shared]]) {
    const skip = list.length === 0 ? `no recordings at ${name === 'own' ? 'spec/fixtures' : 'the shared folder'}` : false;

    test(`${name}: ${list.length} recordings whole, usage as a plain reading gives`, { skip }, async () => {
      const problems = [], answers = new Map();
      await inParallel(list, async (recording) => {
        const answer = await send(recording, '');
        const why = judge(recording, answer);
        if (why) problems.push(`${recording.dir}: ${why}`);
        answers.set(recording, answer);
      });
      let compared = 0;
      const lines = new Map();
      for (const line of gateway.logs('access')) lines.set(line.request_id, line);
      for (const [recording, answer] of answers) {
        if (answer.status !== 200 || recording.status !== 200) continue;
        const text = recording.bytes.toString('utf8');
        const read = recording.isStream ? readStream(recording.api, text) : readBody(recording.api, text);
        const line = lines.get(answer.headers['x-request-id']) ?? await gateway.access(answer);
        const wanted = expectedUsage(recording) ?? read.usage;
        const isCut = recording.isStream && (!read.isDone || read.hasError);
        if (!wanted || wanted.odd || isCut) continue;
        compared++;
        const { input, cache_read, cache_write } = line.tokens;
        const got = { cache_read, cache_write };
        for (const field of ['cache_read', 'cache_write']) {
          if (got[field] !== wanted[field]) problems.push(`${recording.dir}: ${field} ${got[field]}, wanted ${wanted[field]}`);
        }
        if (input > wanted.prompt) problems.push(`${recording.dir}: input ${input} of ${wanted.prompt}`);
        recording.wanted = wanted;
        recording.requestModel = line.model_requested;
      }
      assertNone(problems);
      assert.ok(compared > 0, 'usage was compared');
    });

    test(`${name}: GET /admin/logs tells the same usage`, { skip }, async () => {
      const rows = new Map(), problems = [];
      await until(async () => {
        const { total } = json(await gateway.admin('/admin/logs?page_size=1'));
        return total >= gateway.logs('access').filter((line) => line.exchange).length;
      }, 'all log rows');
      const pages = json(await gateway.admin('/admin/logs?page_size=100')).total_pages;
      for (let page = 1; page <= pages; page++) {
        for (const row of json(await gateway.admin(`/admin/logs?page_size=100&page=${page}`)).items) rows.set(row.model, row);
      }
      for (const recording of list) {
        const row = rows.get(`play:${recording.dir}`);
        if (!row) {
          problems.push(`${recording.dir}: no row`);
          continue;
        }
        if (row.total_tokens !== row.prompt_tokens + row.completion_tokens)
          problems.push(`${recording.dir}: total ${row.total_tokens}`);
        if (!recording.wanted) continue;
        const { prompt, completion } = recording.wanted;
        if (row.prompt_tokens !== prompt || row.completion_tokens !== completion)
          problems.push(`${recording.dir}: ${row.prompt_tokens}+${row.completion_tokens}, wanted ${prompt}+${completion}`);
      }
      assertNone(problems);
    });

    test(`${name}: unchanged in ${SPLITS} splits, and bytewise up to 2 KiB`, { skip }, async () => {
      const jobs = [], problems = [];
      for (const recording of list) {
        if (recording.status !== 200) continue;
        for (let seed = 1; seed <= SPLITS; seed++) jobs.push([recording, `random=${seed}`]);
        jobs.push([recording, 'length']); // not chunked
        if (recording.bytes.length <= 2048) jobs.push([recording, 'bytes']);
      }
      await inParallel(jobs, async ([recording, options]) => {
        const why = judge(recording, await send(recording, options));
        if (why) problems.push(`${recording.dir}#${options}: ${why}`);
      });
      assertNone(problems);
    });

    test(`${name}: without include_usage only the usage chunk is missing`, { skip }, async () => {
      const problems = [];
      let dropped = 0;
      const streams = list.filter((one) => one.isStream && one.status === 200 &&
        (one.api === 'chat' || one.api === 'completions') && !one.bytes.includes('\r') &&
        !/_derived/.test(one.dir) && readStream(one.api, one.bytes.toString('utf8')).isDone &&
        !readStream(one.api, one.bytes.toString('utf8')).hasError);
      const jobs = streams.flatMap((one) => ['', 'random=3', 'random=11'].map((options) => [one, options]));
      await inParallel(jobs, async ([recording, options]) => {
        const wanted = withoutUsageChunks(recording.bytes.toString('utf8'));
        const answer = await send(recording, options, false);
        dropped += wanted.dropped;
        if (answer.status !== 200) problems.push(`${recording.dir}: ${answer.status} ${answer.text.slice(0, 200)}`);
        else if (answer.text !== wanted.text)
          problems.push(`${recording.dir}#${options}: ${difference(Buffer.from(wanted.text), answer.body)}`);
      });
      assertNone(problems);
      assert.ok(dropped > 0, 'some recordings have such a chunk');
    });
  }

  test('connections to the upstream are used again, and nothing is left open', async () => {
    const { accepted, open } = await fake.stats();
    const served = (await fake.requests()).at(-1).n;
    assert.ok(accepted < Math.max(served / 10, 200), `${accepted} connections for ${served} requests`);
    assert.ok(open <= 4 * JOBS, `${open} still open`);
    agent.destroy();
    const fds = () => readdirSync(`/proc/${gateway.child.pid}/fd`).length;
    await until(() => fds() < 80 + open, `the descriptors' return (${fds()} open)`, 3000);
  });

  test('what was asked for leaves the gateway unchanged, or with include_usage spliced in', async () => {
    const text = '{ "messages":[ {"role":"user","content":"\\u00e4 \\ud83d\\ude00"} ], "x_unknown" : 1.50, "model":"echo" }';
    const send1 = (body) => gateway.call('/v1/chat/completions', { key: gateway.key, body,
      headers: { 'content-type': 'application/json' } });
    await fake.clear();
    await send1(text);
    await send1(text.replace('"model"', '"stream":true,"model"'));
    const [plain, injected] = await fake.requests();
    assert.equal(plain.body, text);
    assert.deepEqual(JSON.parse(injected.body).stream_options, { include_usage: true });
    assert.equal(injected.body.replace('"stream_options":{"include_usage":true},', ''),
      text.replace('"model"', '"stream":true,"model"'));
  });
});

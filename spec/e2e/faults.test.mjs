// Upstreams that answer wrongly: broken framing, odd heads, other content than was asked for. The
// client gets what was right or one error in its dialect; the connection is not used again; the next
// call works.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { gzipSync } from 'node:zlib';
import { events, json, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import { backToBase, census, startProxy } from './kit/proxy.mjs';
import { dialects } from './kit/bodies.mjs';

const EVENT = 300; // a hanging upstream costs no more than this
const MiB = 1 << 20;

let fake, proxy, gateway, base;
const wanted = [];
// An upstream with a port of its own for each case, so that no other one meets its connections.
function upstream(dialect, rules = '') {
  const one = { name: `f${wanted.length + 1}`, dialect, rules };
  wanted.push(one);
  return one.name;
}
const gateOf = (name) => wanted.find((one) => one.name === name).gate;

before(async () => {
  fake = await startFake();
  proxy = await startProxy();
  for (const one of wanted) one.gate = await proxy.gate(fake.port, one.rules);
  gateway = await startGateway({ conf: { hold_head: 20, keepalive: 20, upstreams: wanted.map(({ name, dialect, gate }) => ({
    name, provider: dialect.provider, api_key: 'sk-upstream-0123456789', models: [name], base_url: gate.base(name),
    connect_ms: 1000, first_byte_ms: 600, event_ms: EVENT })) } });
  await gateway.upstream({ name: 'warm', base_url: fake.base('warm'), models: ['warm'] });
  await fake.script('warm', { body: dialects.chat.body() });
  await Promise.all(Array.from({ length: 8 }, () => ask(dialects.chat, 'warm', { stream: false })));
  base = await census(gateway, fake);
  delete base.descriptors; // of each upstream's own port a pool is kept for a minute
});
after(() => stopAll(gateway, proxy, fake));

const ask = (dialect, model, { stream = true, ...more } = {}) =>
  gateway.call(dialect.path, { key: gateway.key, body: dialect.request(model, stream), ...more });

const SSE = 'content-type: text/event-stream\r\n', JSON_TYPE = 'content-type: application/json\r\n';
const CHUNKED = 'transfer-encoding: chunked\r\n';
const head = (lines, status = '200 OK') => `HTTP/1.1 ${status}\r\n${lines}\r\n`;
const chunk = (text) => `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`;
const END = '0\r\n\r\n';

// What a stream's cases look like for a dialect: [name, bytes, what is right].
//   pass   the stream as it is           error  a status and an error body
//   cut    the beginning, then an error in the stream           any  pass or error
// `close`: the upstream closes behind the bytes, as the answer is a proper one or is meant to end so;
// else it stays open and says nothing more: the connection must not be used again.
function streamCases(dialect) {
  const s = dialect.stream(), half = s.slice(0, s.indexOf('\n\n', s.indexOf('Hel')) + 2), rest = s.slice(half.length);
  const good = head(SSE + CHUNKED) + chunk(s) + END;
  const filler = (bytes) => {
    const fixed = head(`${SSE}${CHUNKED}x-fill: \r\n`).length;
    return head(`${SSE}${CHUNKED}x-fill: ${'f'.repeat(bytes - fixed)}\r\n`);
  };
  const bad = (size) => head(SSE + CHUNKED) + chunk(half) + `${size}\r\n${rest}\r\n${END}`;
  return [
    ['a good one', good, 'pass', 'close'],
    ['chunk: closed inside', head(SSE + CHUNKED) + `${(half.length + 50).toString(16)}\r\n${half}`, 'cut', 'close'],
    ['chunk: closed between', head(SSE + CHUNKED) + chunk(half), 'cut', 'close'],
    ['chunk: silent inside', head(SSE + CHUNKED) + `${(half.length + 50).toString(16)}\r\n${half}`, 'cut'],
    ...['zz', '-5', '+5', '0x10', '5 5', '', ' ', 'ffffffffffffffff1', 'g', ';x=y', '\0'].map((size) =>
      [`chunk size ${JSON.stringify(size)}`, bad(size), 'cut']),
    ['a first chunk of size zz', head(SSE + CHUNKED) + `zz\r\n${s}\r\n${END}`, 'error'],
    ['chunk without its line end', head(SSE + CHUNKED) + `${half.length.toString(16)}\r\n${half}XX${chunk(rest)}${END}`, 'cut'],
    ['chunk extension', head(SSE + CHUNKED) + `${half.length.toString(16)};a=b;c="d"\r\n${half}\r\n${chunk(rest)}${END}`, 'pass', 'close'],
    ['trailers', head(SSE + CHUNKED) + chunk(s) + '0\r\nx-trailer: 1\r\nset-cookie: a=b\r\n\r\n', 'pass', 'close'],
    ['upper-case size', head(SSE + CHUNKED) + `${half.length.toString(16).toUpperCase()}\r\n${half}\r\n${chunk(rest)}${END}`, 'pass', 'close'],
    ['two Content-Lengths', head(`${SSE}content-length: ${s.length}\r\ncontent-length: ${s.length + 1}\r\n`) + s, 'error'],
    ['the same Content-Length twice', head(`${SSE}content-length: ${s.length}\r\ncontent-length: ${s.length}\r\n`) + s, 'any', 'close'],
    ['a list of Content-Lengths', head(`${SSE}content-length: ${s.length}, ${s.length}\r\n`) + s, 'any', 'close'],
    ...['-1', '+5', '5a', '', '0x5', '99999999999999999999', '9223372036854775808'].map((value) =>
      [`Content-Length ${JSON.stringify(value)}`, head(`${SSE}content-length: ${value}\r\n`) + s, 'error']),
    ['Content-Length beyond what comes', head(`${SSE}content-length: 4611686018427387904\r\n`) + half, 'cut'],
    ['Content-Length and chunked', head(`${SSE}content-length: ${s.length}\r\n${CHUNKED}`) + chunk(s) + END, 'error'],
    ['chunked and Content-Length', head(`${SSE}${CHUNKED}content-length: 5\r\n`) + chunk(s) + END, 'error'],
    ['chunked twice', head(SSE + CHUNKED + CHUNKED) + chunk(s) + END, 'error'],
    ['gzip, chunked', head(`${SSE}transfer-encoding: gzip, chunked\r\n`) + chunk(s) + END, 'error'],
    ['an encoding not known', head(`${SSE}transfer-encoding: identity\r\n`) + s, 'error'],
    ['chunked in HTTP/1.0', good.replace('HTTP/1.1', 'HTTP/1.0'), 'error'],
    ['HTTP/1.0 until closed', head(SSE).replace('HTTP/1.1', 'HTTP/1.0') + s, 'pass', 'close'],
    ['HTTP/1.0 with a length', head(`${SSE}content-length: ${s.length}\r\nconnection: keep-alive\r\n`).replace('HTTP/1.1', 'HTTP/1.0') + s, 'pass', 'close'],
    ['no length, closed at the end', head(SSE) + s, 'pass', 'close'],
    ['no length, closed early', head(SSE) + half, 'cut', 'close'],
    ['short of its length', head(`${SSE}content-length: ${s.length}\r\n`) + half, 'cut', 'close'],
    ['bytes after the last chunk', good + 'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil', 'pass'],
    ['bytes after the length', head(`${SSE}content-length: ${s.length}\r\n`) + s + 'evil', 'pass'],
    ['a head of 64 KiB', filler(65536) + chunk(s) + END, 'pass', 'close'],
    ['a head of 64 KiB and a byte', filler(65537) + chunk(s) + END, 'error'],
    ['400 fields', head(SSE + CHUNKED + 'x-a: b\r\n'.repeat(400)) + chunk(s) + END, 'pass', 'close'],
    ['600 fields', head(SSE + CHUNKED + 'x-a: b\r\n'.repeat(600)) + chunk(s) + END, 'error'],
    ['16 heads of 103', 'HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n'.repeat(16) + good, 'pass', 'close'],
    ['17 heads of 103', 'HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n'.repeat(17) + good, 'error'],
    ['100 Continue that nobody asked for', 'HTTP/1.1 100 Continue\r\n\r\n' + good, 'pass', 'close'],
    ['101', 'HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n' + good, 'error'],
    ['101 asked of a websocket', head('upgrade: websocket\r\nconnection: upgrade\r\n', '101 Switching Protocols'), 'error'],
    ['a folded line', head(`${SSE}x-a: b\r\n c\r\n${CHUNKED}`) + chunk(s) + END, 'error'],
    ['a space before the colon', head(`${SSE}transfer-encoding : chunked\r\n`) + chunk(s) + END, 'error'],
    ['no colon', head(`${SSE}nonsense\r\n${CHUNKED}`) + chunk(s) + END, 'error'],
    ['an empty name', head(`${SSE}: x\r\n${CHUNKED}`) + chunk(s) + END, 'error'],
    ['a NUL in a value', head(`${SSE}x-a: b\0c\r\n${CHUNKED}`) + chunk(s) + END, 'error'],
    ['a bare CR in a value', head(`${SSE}openai-version: a\rset-cookie: evil=1\r\n${CHUNKED}`) + chunk(s) + END, 'error'],
    ['a control byte in a passed field', head(`${SSE}openai-version: a\x01b\r\n${CHUNKED}`) + chunk(s) + END, 'any', 'close'],
    ['bytes above ASCII in a passed field', head(`${SSE}openai-version: \xff\xfe\r\n${CHUNKED}`) + chunk(s) + END, 'any', 'close'],
    ['lines that end with LF only', good.replace(/\r\n/g, '\n'), 'any', 'close'],
    ['HTTP/2.0', good.replace('HTTP/1.1', 'HTTP/2.0'), 'error'],
    ['HTTP/0.9', s, 'error', 'close'],
    ['http/1.1 in small letters', good.replace('HTTP/1.1', 'http/1.1'), 'error'],
    ['ICY 200', good.replace('HTTP/1.1', 'ICY'), 'error'],
    ['a status of two digits', good.replace('200 OK', '20 OK'), 'error'],
    ['a status of four digits', good.replace('200 OK', '2000 OK'), 'error'],
    ['status 099', good.replace('200 OK', '099 OK'), 'error'],
    ['status 999', good.replace('200 OK', '999 Odd'), 'error', 'close'],
    ['status 600', good.replace('200 OK', '600 Odd'), 'error', 'close'],
    ['no reason', good.replace('200 OK', '200'), 'any', 'close'],
    ['a redirect', head('location: http://127.0.0.1:1/\r\ncontent-length: 0\r\n', '302 Found'), 'error', 'close'],
    ['304', head('', '304 Not Modified'), 'error', 'close'],
    ['204', head('', '204 No Content'), 'error', 'close'],
    ['205 with a body', head(`${SSE}content-length: ${s.length}\r\n`, '205 Reset Content') + s, 'any', 'close'],
    ['206', good.replace('200 OK', '206 Partial Content'), 'any', 'close'],
    ['an empty body', head(`${SSE}content-length: 0\r\n`), 'error', 'close'],
    ['only white space', head(`${SSE}content-length: 6\r\n`) + '\r\n\r\n\n\n', 'error', 'close'],
    ['only comments', head(SSE + CHUNKED) + chunk(': ping\n\n'.repeat(5)) + END, 'error', 'close'],
    ['HTML as a stream', head(`${SSE}content-length: 30\r\n`) + '<html><h1>Bad Gateway</h1></ht', 'error', 'close'],
    ['HTML and 200', head('content-type: text/html\r\ncontent-length: 30\r\n') + '<html><h1>Bad Gateway</h1></ht', 'error', 'close'],
    ['HTML and 502', head('content-type: text/html\r\ncontent-length: 30\r\n', '502 Bad Gateway') + '<html><h1>Bad Gateway</h1></ht', 'error', 'close'],
    ['a JSON error and 200', head(JSON_TYPE + CHUNKED) + chunk(JSON.stringify(dialect.upstreamError('no', 'api_error'))) + END, 'error', 'close'],
    ['events told to be JSON', head(JSON_TYPE + CHUNKED) + chunk(s) + END, 'pass', 'close'],
    ['events of no type', head(CHUNKED) + chunk(s) + END, 'pass', 'close'],
    ['a charset nobody knows', head(`content-type: text/event-stream; charset=utf-7\r\n${CHUNKED}`) + chunk(s) + END, 'pass', 'close'],
    ['two content types', head(`${SSE}content-type: text/html\r\n${CHUNKED}`) + chunk(s) + END, 'pass', 'close'],
    ['connection: close that stays open', head(`${SSE}content-length: ${s.length}\r\nconnection: close\r\n`) + s, 'pass'],
    ['connection: keep-alive that closes', head(`${SSE}content-length: ${s.length}\r\nconnection: keep-alive\r\nkeep-alive: timeout=600\r\n`) + s, 'pass', 'close'],
    ['an error in the first event', head(SSE + CHUNKED) + chunk(dialect.errorFirst()) + END, 'error', 'close'],
    ['headers of its own keeping', head(`${SSE}${CHUNKED}set-cookie: a=b\r\nx-request-id: evil\r\nserver: evil\r\nx-ratelimit-limit-tokens: 7\r\n` +
      'access-control-allow-origin: *\r\nx-moongate-lossy: evil\r\n') + chunk(s) + END, 'pass', 'close'],
  ];
}

// '' or what is wrong with the answer.
function judge(dialect, answer, right, body, begin) {
  const isWhole = answer.status === 200 && answer.text === body && answer.ended === 'clean';
  if (right === 'pass' || (right === 'any' && answer.status < 400)) {
    if (!isWhole) return `wanted the stream, got ${answer.status} ${answer.ended}: ${answer.text.slice(-300)}`;
  } else if (right === 'cut') {
    if (answer.status !== 200 || !answer.text.startsWith(begin)) return `wanted the beginning, got ${answer.status}: ${answer.text.slice(0, 300)}`;
    const rest = answer.text.slice(begin.length);
    if (/\[DONE\]|message_stop|response\.completed/.test(rest)) return `a made-up end: ${rest}`;
    if (!dialect.streamError(events(answer.text))) return `no error in the stream: ${rest}`;
  } else {
    if (![502, 503, 504].includes(answer.status)) return `wanted an error, got ${answer.status}: ${answer.text.slice(0, 300)}`;
    let isError = false;
    try { isError = dialect.isError(json(answer)); } catch { /* no JSON */ }
    if (!isError) return `not an error of the dialect: ${answer.text.slice(0, 300)}`;
  }
  const evil = ['set-cookie', 'server', 'x-ratelimit-limit-tokens', 'x-moongate-lossy', 'access-control-allow-origin', 'x-trailer']
    .filter((name) => answer.headers[name] !== undefined);
  if (evil.length) return `headers of the upstream's: ${evil}`;
  return '';
}

// The odd answer, then a good one on the same upstream, from another connection.
async function oddThenGood(dialect, model, step, options, check) {
  const good = { body: options.stream === false ? dialect.body() : dialect.stream() };
  await fake.script(model, [step, good]);
  const answer = await ask(dialect, model, options);
  const why = check(answer);
  if (why) return why;
  if (!answer.headers['x-request-id']) return 'no request id';
  // Else the next call could meet a connection whose end is still on its way.
  if (step.end === 'close') await until(async () => (await gateOf(model).stats()).open === 0, 'the end of its connection');
  const next = await ask(dialect, model, options);
  const posts = await fake.requests(model);
  if (next.status !== 200) return `the next call: ${next.status} ${next.text.slice(0, 300)} ${JSON.stringify(posts.map(({ connection, how, sent, began_ms, ended_ms }) => [connection, how, sent, began_ms, ended_ms]))}`;
  if (posts.length !== 2) return `${posts.length} POSTs for two calls`;
  if (posts[0].connection === posts[1].connection) return 'its connection was used again';
  const line = await gateway.access(answer);
  return line.attempts.length === 1 ? '' : `${line.attempts.length} attempts in the log`;
}

const bytes = (text) => Buffer.from(text, 'latin1').toString('base64');

for (const [name, dialect] of Object.entries(dialects)) {
  describe(`odd streams: ${name}`, { concurrency: 8 }, () => {
    const s = dialect.stream(), half = s.slice(0, s.indexOf('\n\n', s.indexOf('Hel')) + 2);
    for (const [what, raw, right, how] of streamCases(dialect)) {
      const model = upstream(dialect);
      test(`${what} → ${right}`, async () => {
        assert.equal(await oddThenGood(dialect, model, { raw_base64: bytes(raw), end: how ?? 'hang' }, { stream: true },
          (answer) => judge(dialect, answer, right, s, half)), '');
      });
    }
  });

  describe(`odd whole answers: ${name}`, { concurrency: 8 }, () => {
    const body = JSON.stringify(dialect.body()), gz = gzipSync(body).toString('latin1');
    const whole = (type, text, more = '') => head(`content-type: ${type}\r\ncontent-length: ${text.length}\r\n${more}`) + text;
    for (const [what, raw, right] of [
      ['of another charset', whole('application/json; charset=x-unknown', body), 'pass'],
      ['of type text/plain', whole('text/plain', body), 'pass'],
      ['of no type', head(`content-length: ${body.length}\r\n`) + body, 'pass'],
      ['with white space around', whole('application/json', ` \r\n${body}\n\n`), 'pass'],
      ['empty', whole('application/json', ''), 'error'],
      ['white space', whole('application/json', '  \n'), 'error'],
      ['cut JSON', whole('application/json', body.slice(0, -20)), 'error'],
      ['a JSON text', whole('application/json', '"hello"'), 'error'],
      ['HTML', whole('text/html', '<html><h1>Bad Gateway</h1></html>'), 'error'],
      ['HTML told to be JSON', whole('application/json', '<html></html>'), 'error'],
      ['events where JSON is due', whole('text/event-stream', dialect.stream()), 'error'],
      ['short of its length', head(`${JSON_TYPE}content-length: ${body.length + 9}\r\n`) + body, 'error'],
      ['bytes after the end', whole('application/json', body) + 'x', 'pass'],
      ['closed early without a length', head(JSON_TYPE) + body.slice(0, 50), 'error'],
      ['an error with 200', whole('application/json', JSON.stringify(dialect.upstreamError('no', 'api_error'))), 'error'],
      ['compressed though nobody asked', whole('application/json', gz, 'content-encoding: gzip\r\n'), 'gzip'],
      ['a compressed error', head(`${JSON_TYPE}content-encoding: gzip\r\ncontent-length: ${gz.length}\r\n`, '500 Oops') + gz, 'error'],
    ]) {
      const model = upstream(dialect);
      test(`${what} → ${right}`, async () => {
        const end = /short|after the end/.test(what) ? 'hang' : 'close';
        const why = await oddThenGood(dialect, model, { raw_base64: bytes(raw), end }, { stream: false }, (answer) => {
          if (right === 'gzip') {
            return answer.status === 200 && answer.headers['content-encoding'] === 'gzip' && answer.body.equals(Buffer.from(gz, 'latin1'))
              ? '' : `wanted it as it is, got ${answer.status} ${JSON.stringify(answer.headers)}`;
          }
          return judge(dialect, answer, right, raw.slice(raw.indexOf('\r\n\r\n') + 4).replace(/x$/, ''), '');
        });
        assert.equal(why, '');
      });
    }
  });

  describe(`odd events: ${name}`, { concurrency: 4 }, () => {
    const s = dialect.stream();
    for (const [what, text] of [
      ['a BOM', `\ufeff${s}`], ['CR only', s.replaceAll('\n', '\r')], ['CRLF', s.replaceAll('\n', '\r\n')],
      ['mixed ends', s.split('\n').map((line, i) => line + ['\n', '\r\n'][i % 2]).join('').slice(0, -1)],
      ['comments and unknown fields', s.replaceAll('data:', ': a comment\nid: 7\nretry: 10\nunknown: x\ndata:')],
      ['no space behind the colon', s.replaceAll('data: ', 'data:')],
    ]) {
      const model = upstream(dialect);
      test(`${what}: unchanged, bytewise too`, async () => {
        for (const more of [{}, { split: 'bytes' }]) {
          await fake.script(model, { body: text, headers: { 'content-type': 'text/event-stream' }, framing: 'chunked', ...more });
          const answer = await ask(dialect, model);
          assert.equal(answer.status, 200, answer.text);
          assert.ok(answer.body.equals(Buffer.from(text)), answer.text);
          assert.equal((await gateway.access(answer)).error_class, undefined);
        }
      });
    }
  });

  describe(`other refusals: ${name}`, { concurrency: 8 }, () => {
    for (const [shape, seconds] of [['7', 7], ['0', 1], ['-1', 1], ['3600', 60], ['99999999999999999999', 1], ['1e9', 1], ['3.7', 3],
      ['', 1], ['soon', 1], ['Wed, 21 Oct 2065 07:28:00 GMT', 1], ['7, 8', 7]]) {
      const model = upstream(dialect);
      test(`Retry-After ${JSON.stringify(shape)} → ${seconds}`, async () => {
        await fake.script(model, { status: 429, headers: { 'retry-after': shape }, body: dialect.upstreamError('slow', 'rate_limit_error') });
        const answer = await ask(dialect, model);
        assert.equal(answer.status, 429, answer.text);
        assert.ok(dialect.isError({ request_id: '', ...json(answer) }), answer.text);
        assert.equal(answer.headers['retry-after'], String(seconds));
        assert.equal(answer.headers['retry-after-ms'], String(seconds * 1000));
      });
    }

    // Answers that come while the request is still being sent.
    const early = (status, text) => `HTTP/1.1 ${status}\r\ncontent-type: application/json\r\ncontent-length: ${text.length}\r\n\r\n${text}`;
    for (const [what, raw, how, statuses] of [
      ['a refusal, then closed', early('413 Too Large', JSON.stringify(dialect.upstreamError('too large'))), 'close', [413, 502]],
      ['a refusal, then silence', early('413 Too Large', JSON.stringify(dialect.upstreamError('too large'))), 'hang', [413, 502, 504]],
      ['a whole answer, then silence', early('200 OK', JSON.stringify(dialect.body())), 'hang', [200, 502, 504]],
      ['a reset', early('413 Too Large', '{}'), 'reset', [413, 502]],
    ]) {
      const model = upstream(dialect, `answer=${Buffer.from(raw).toString('hex')},${how}`);
      test(`an answer before the request's end: ${what}`, async () => {
        const body = { ...dialect.request(model, false), padding: 'x'.repeat(6 * MiB) };
        const answer = await gateway.call(dialect.path, { key: gateway.key, body });
        assert.ok(statuses.includes(answer.status), `${answer.status} ${answer.text.slice(0, 300)}`);
        if (answer.status >= 400) assert.ok(dialect.isError({ request_id: '', ...json(answer) }), answer.text);
        else assert.deepEqual(json(answer), dialect.body());
        if (how !== 'hang') await until(async () => (await gateOf(model).stats()).open === 0, 'the end of its connection', 2000);
      });
    }
  });
}

describe('events of 16 MiB', () => {
  for (const [name, dialect] of [['chat', dialects.chat], ['messages', dialects.messages]]) {
    const model = upstream(dialect);
    test(`${name}: exactly 16 MiB passes, a byte more is an error`, async () => {
      const event = (size) => {
        const [begin, end] = name === 'chat'
          ? ['data: {"choices":[{"index":0,"delta":{"content":"', '"}}]}\n\n']
          : ['event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"', '"}}\n\n'];
        return begin + 'x'.repeat(size - begin.length - end.length) + end;
      };
      const s = dialect.stream(), at = s.indexOf('\n\n', s.indexOf('Hel')) + 2;
      const [first, last] = [s.slice(0, at), s.slice(at)];
      await fake.script(model, { body: first + event(16 * MiB) + last });
      const answer = await ask(dialect, model);
      assert.ok(answer.body.equals(Buffer.from(first + event(16 * MiB) + last)), `${answer.status}, ${answer.body.length} bytes`);
      await fake.script(model, { body: first + event(16 * MiB + 1) + last });
      const huge = await ask(dialect, model);
      assert.ok(huge.text.startsWith(first));
      assert.ok(dialect.streamError(events(huge.text.slice(-2000))), huge.text.slice(-1000));
      assert.ok(!huge.text.endsWith(last));
      // As the very first one it leads to another upstream, or to an error before the head.
      await fake.script(model, { body: event(16 * MiB + 1) + last });
      const only = await ask(dialect, model);
      if (only.status === 200) assert.ok(dialect.streamError(events(only.text.slice(-2000))));
      else assert.ok(dialect.isError(json(only)), only.text.slice(0, 300));
    });
  }
});

describe('afterwards', () => {
  test('all works, nothing is left open, one row each', async () => {
    const answer = await ask(dialects.chat, 'warm', { stream: false });
    assert.deepEqual(json(answer), dialects.chat.body());
    for (const { gate } of wanted) await gate.cut();
    await backToBase(gateway, fake, base);
    const lines = () => gateway.logs('access').filter((line) => line.exchange);
    await until(async () => json(await gateway.admin('/admin/logs?page_size=1')).total === lines().length, 'the rows');
    assert.equal(new Set(lines().map((line) => line.exchange)).size, lines().length);
  });
});

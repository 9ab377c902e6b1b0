// HTTPS at the gateway's own port: SDKs, versions, protocols, tickets over workers, the certificate's
// swap under open streams.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, readdirSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import tls from 'node:tls';
import { call, json, raw, until } from './kit/http.mjs';
import { cli, collect, makeHome, project, startFake, startGateway, started, stopAll } from './kit/kit.mjs';
import { makeAuthority } from './kit/certificates.mjs';
import * as bodies from './kit/bodies.mjs';

let authority, fake, gateway, certFile, keyFile;
const dialect = bodies.dialects.chat;

function writePair(pair) {
  writeFileSync(certFile, pair.cert);
  writeFileSync(keyFile, pair.key, { mode: 0o600 });
}

const listen = () => ({ tls_cert: certFile, tls_key: keyFile });

before(async () => {
  authority = makeAuthority();
  certFile = path.join(authority.dir, 'gateway.pem');
  keyFile = path.join(authority.dir, 'gateway.key');
  writePair(authority.issue({ cn: 'first' }));
  fake = await startFake();
  gateway = await startGateway({ ca: authority.ca, conf: { workers: 2, listen: listen() } });
  await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true, models: ['gpt-*'] });
  await gateway.upstream({ name: 'ant', provider: 'anthropic', base_url: fake.url, models: ['claude-*'] });
});
after(async () => {
  await stopAll(gateway, fake);
  authority.remove();
});

// The SDKs use fetch, which learns of an authority from the environment of its process.
async function sdk(script) {
  const child = started(spawn(process.execPath, ['--input-type=module', '-e', script], {
    cwd: path.join(project, 'spec/e2e'), stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NODE_EXTRA_CA_CERTS: authority.caFile, URL_: gateway.url, KEY: gateway.key },
  }));
  const out = collect(child, 'stdout'), err = collect(child, 'stderr');
  const { code } = await child.exited;
  assert.equal(code, 0, err.text);
  return JSON.parse(out.text);
}

// One handshake → {protocol, alpn, reused, session, socket, subject}; rejects with the error.
function handshake(options = {}) {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({ port: gateway.port, host: '127.0.0.1', servername: 'localhost', ca: authority.ca, ...options });
    const result = {};
    socket.once('error', reject);
    socket.on('session', (session) => { result.session = session; });
    socket.once('secureConnect', () => {
      Object.assign(result, { socket, protocol: socket.getProtocol(), alpn: socket.alpnProtocol,
        reused: socket.isSessionReused(), subject: socket.getPeerCertificate().subject?.CN });
      resolve(result);
    });
  });
}

const request = `POST ${dialect.path} HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n`;

describe('SDKs over https', () => {
  test('OpenAI: chat, stream, an error', async () => {
    await fake.script('gpt-tls', { body: bodies.chatBody() });
    await fake.script('gpt-tls-stream', { body: bodies.chatStream(), split: 'bytes' });
    const seen = await sdk(`
      import OpenAI from 'openai';
      const client = new OpenAI({ apiKey: process.env.KEY, baseURL: process.env.URL_ + '/v1', maxRetries: 0 });
      const messages = [{ role: 'user', content: 'Hi' }];
      const whole = await client.chat.completions.create({ model: 'gpt-tls', messages });
      let text = '';
      for await (const chunk of await client.chat.completions.create({ model: 'gpt-tls-stream', messages, stream: true }))
        text += chunk.choices[0].delta.content ?? '';
      const bad = new OpenAI({ apiKey: 'sk-wrong-key-0123456789', baseURL: process.env.URL_ + '/v1', maxRetries: 0 });
      const error = await bad.models.list().catch((error) => error.status);
      console.log(JSON.stringify({ whole: whole.choices[0].message.content, text, error }));`);
    assert.deepEqual(seen, { whole: 'Hello there.', text: 'Hello there.', error: 401 });
  });

  test('Claude: a stream', async () => {
    await fake.script('claude-tls', { body: bodies.dialects.messages.stream(), split: 'bytes' });
    const seen = await sdk(`
      import Anthropic from '@anthropic-ai/sdk';
      const client = new Anthropic({ apiKey: process.env.KEY, baseURL: process.env.URL_, maxRetries: 0 });
      const message = await client.messages.stream({ model: 'claude-tls', max_tokens: 100,
        messages: [{ role: 'user', content: 'Hi' }] }).finalMessage();
      console.log(JSON.stringify({ text: message.content[0].text, stop: message.stop_reason }));`);
    assert.ok(seen.text.length > 0);
    assert.equal(seen.stop, 'end_turn');
  });

  test('a body of 4 MiB and an answer of 4 MiB', async () => {
    const text = 'x'.repeat(4 << 20);
    await fake.script('gpt-large', { body: { ...bodies.chatBody(), pad: text } });
    const answer = await gateway.call(dialect.path, { key: gateway.key, body: { model: 'gpt-large',
      messages: [{ role: 'user', content: text }] } });
    assert.equal(answer.status, 200);
    assert.equal(json(answer).pad.length, text.length);
    assert.equal(answer.ended, 'clean');
    const [seen] = await fake.requests('gpt-large');
    assert.ok(Number(seen.header['content-length']) > text.length);
  });
});

describe('handshakes', () => {
  test('TLS 1.3 and 1.2 are spoken, older ones are refused', async () => {
    for (const [version, protocol] of [['TLSv1.3', 'TLSv1.3'], ['TLSv1.2', 'TLSv1.2']]) {
      const one = await handshake({ minVersion: version, maxVersion: version });
      assert.equal(one.protocol, protocol);
      one.socket.destroy();
    }
    for (const version of ['TLSv1', 'TLSv1.1']) {
      await assert.rejects(handshake({ minVersion: version, maxVersion: version, ciphers: 'ALL:@SECLEVEL=0' }),
        /protocol version/i, version);
    }
  });

  test('ALPN: http/1.1, or nothing said; h2 alone is refused by name', async () => {
    for (const [offered, chosen] of [[['h2', 'http/1.1'], 'http/1.1'], [['http/1.1'], 'http/1.1'], [undefined, false]]) {
      const one = await handshake({ ALPNProtocols: offered });
      assert.equal(one.alpn, chosen);
      one.socket.destroy();
    }
    await assert.rejects(handshake({ ALPNProtocols: ['h2'] }), /no application protocol/i);
  });

  test('tickets are good at every worker', async () => {
    for (const version of ['TLSv1.2', 'TLSv1.3']) {
      let session, reused = 0;
      for (let i = 0; i < 12; i++) {
        const one = await handshake({ session, maxVersion: version });
        if (i > 0) reused += one.reused;
        // One exchange, so that the ticket of TLS 1.3 has come.
        await new Promise((resolve) => {
          one.socket.once('data', resolve);
          one.socket.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n');
        });
        session = one.session ?? one.socket.getSession();
        one.socket.destroy();
      }
      assert.equal(reused, 11, version); // two workers share 12 connections: no luck
    }
  });

  test('plain HTTP is told what this port speaks', async () => {
    const { text, how } = await raw(gateway.port, 'GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n');
    assert.match(text, /^HTTP\/1\.1 400 /);
    assert.match(text, /this port speaks HTTPS/);
    assert.equal(how, 'closed');
  });

  test('rubbish, and 300 hellos cut short, leave nothing', async () => {
    const count = () => readdirSync(`/proc/${gateway.child.pid}/fd`).length;
    const before = count();
    const rubbish = await raw(gateway.port, Buffer.from('160301000568656c6c6f', 'hex'));
    assert.equal(rubbish.text.charCodeAt(0), 0x15, 'an alert');
    await Promise.all(Array.from({ length: 300 }, (_, i) => new Promise((resolve) => {
      const socket = net.connect(gateway.port, '127.0.0.1', () => {
        socket.write(Buffer.from('16030100c8010000c40303', 'hex').subarray(0, i % 12), () => socket.destroy());
      });
      socket.on('close', resolve);
      socket.on('error', () => {});
    })));
    await until(() => count() <= before, 'all descriptors closed');
    assert.equal((await gateway.call('/healthz')).status, 200);
  });

  test('the end of a connection is said with close_notify; openssl sees no error', async () => {
    const result = spawnSync('openssl', ['s_client', '-connect', `127.0.0.1:${gateway.port}`, '-servername', 'localhost',
      '-CAfile', authority.caFile, '-verify_return_error', '-quiet', '-ign_eof'], { encoding: 'utf8', timeout: 10000,
      input: 'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' });
    assert.match(result.stdout, /^HTTP\/1\.1 200 /);
    assert.equal(result.status, 0, result.stderr);
    assert.doesNotMatch(result.stderr, /unexpected eof/i);
  });
});

describe('back-pressure and leaving', () => {
  test('a client that stops reading stops the upstream; what it reads then is whole', async () => {
    const events = Array.from({ length: 4000 }, (_, i) => `${i} `.padEnd(500, 'y'));
    const stream = dialect.stream(events);
    await fake.script('gpt-slow-reader', { body: stream });
    const body = JSON.stringify(dialect.request('gpt-slow-reader'));
    const { socket } = await handshake();
    socket.write(`${request}Authorization: Bearer ${gateway.key}\r\nConnection: close\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
    await new Promise((resolve) => socket.once('readable', resolve));
    await new Promise((resolve) => setTimeout(resolve, 300));
    let text = '';
    for await (const bytes of socket) text += bytes.toString('latin1');
    assert.ok(text.endsWith('0\r\n\r\n'));
    assert.ok(text.includes('3999 yyy'));
  });

  test('a client that leaves cancels the upstream', async () => {
    await fake.script('gpt-leave', { body: dialect.stream(['a'], { end: false }), framing: 'chunked', end: 'hang' });
    let left = false;
    await call(gateway.url + dialect.path, { ca: authority.ca, key: gateway.key, body: dialect.request('gpt-leave'),
      onChunk: (_text, one) => { left = true; one.destroy(); } }).catch(() => {});
    assert.ok(left);
    await until(async () => (await fake.requests('gpt-leave')).find((one) => one.peer_closed), 'cancel at the upstream', 3000);
  });
});

describe('the certificate', () => {
  test('SIGHUP swaps it under open streams; a bad pair changes nothing and is named', async () => {
    await fake.script('gpt-swap', { body: dialect.stream(), split: { size: 120 }, delay_ms: 60 });
    let seen = false;
    const running = gateway.call(dialect.path, { key: gateway.key, body: dialect.request('gpt-swap'), onChunk: () => { seen = true; } });
    const kept = await handshake();
    assert.equal(kept.subject, 'first');
    await until(() => seen, 'the first chunk');
    writePair(authority.issue({ cn: 'second' }));
    gateway.signal('SIGHUP');
    await until(() => gateway.logs('reloaded').length === 1, 'the reload');
    const next = await handshake();
    assert.equal(next.subject, 'second');
    next.socket.destroy();
    // Opened before: still served.
    const answer = await running;
    assert.equal(answer.text, dialect.stream());
    assert.equal(answer.ended, 'clean');
    kept.socket.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n');
    const [bytes] = await new Promise((resolve) => kept.socket.once('data', (...args) => resolve(args)));
    assert.match(bytes.toString(), /^HTTP\/1\.1 200/);
    kept.socket.destroy();

    const third = authority.issue({ cn: 'third' });
    writeFileSync(certFile, third.cert); // the key is still the second's
    gateway.signal('SIGHUP');
    const failed = await until(() => gateway.logs('reload_failed')[0], 'the failure');
    assert.match(failed.problems, /TLS key \S*gateway\.key does not belong to the certificate \S*gateway\.pem/);
    const still = await handshake();
    assert.equal(still.subject, 'second');
    still.socket.destroy();

    writePair(third);
    chmodSync(keyFile, 0o644);
    const told = gateway.cli('reload');
    assert.equal(told.code, 0, told.err);
    await until(() => gateway.logs('tls_key_exposed').length > 0, 'a warning of the key file');
    chmodSync(keyFile, 0o600);
    const last = await handshake();
    assert.equal(last.subject, 'third');
    last.socket.destroy();
    const secret = third.key.split('\n')[1];
    assert.ok(!gateway.err.text.includes(secret) && !gateway.out.text.includes(secret), 'the key is nowhere in the logs');
    assert.deepEqual(gateway.filesWith(secret), []);
  });

  test('start is refused with the file named', async () => {
    const good = authority.issue(), other = authority.issue();
    const at = (name) => path.join(authority.dir, name);
    for (const [name, text] of [['a.pem', good.cert], ['a.key', good.key], ['b.key', other.key], ['bad.pem', 'no certificate\n']]) writeFileSync(at(name), text, { mode: 0o600 });
    for (const [cert, key, error] of [
      ['a.pem', 'b.key', /b\.key does not belong to the certificate \S*a\.pem/],
      ['nowhere.pem', 'a.key', /TLS certificate \S*nowhere\.pem: No such file/],
      ['bad.pem', 'a.key', /TLS certificate \S*bad\.pem: /],
      ['a.pem', 'nowhere.key', /TLS key \S*nowhere\.key: No such file/],
      ['a.pem', undefined, /TLS_KEY: not set/],
    ]) {
      const home = makeHome({ conf: { listen: { tls_cert: at(cert), ...(key ? { tls_key: at(key) } : {}) } } });
      for (const verb of ['run', 'check']) {
        const result = cli(home, verb);
        assert.equal(result.code, 1, `${verb} ${cert} ${key}`);
        assert.match(result.err, error);
      }
      home.remove();
    }
  });

  test('the second listener speaks TLS when told to', async () => {
    const probe = net.createServer();
    await new Promise((resolve) => probe.listen(0, '127.0.0.1', resolve));
    const { port } = probe.address();
    await new Promise((resolve) => probe.close(resolve));
    const home = makeHome({ conf: { workers: 1, listen: { ...listen(), admin: `127.0.0.1:${port}`, admin_tls: true } } });
    const second = await startGateway({ home, ca: authority.ca });
    try {
      assert.equal((await call(`https://127.0.0.1:${port}/metrics`, { ca: authority.ca })).status, 200);
      assert.equal((await call(`http://127.0.0.1:${port}/metrics`)).status, 400);
      assert.equal((await second.call('/healthz')).status, 200);
    } finally {
      await second.stop();
    }
  });

  test('SIGTERM: a running stream ends whole over TLS', async () => {
    const home = makeHome({ conf: { workers: 2, listen: listen(), drain_timeout: 5 } });
    const one = await startGateway({ home, ca: authority.ca });
    await one.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true, models: ['gpt-*'] });
    await fake.script('gpt-term', { body: dialect.stream(), split: { size: 200 }, delay_ms: 80 });
    let seen = false;
    const running = one.call(dialect.path, { key: one.key, body: dialect.request('gpt-term'), onChunk: () => { seen = true; } });
    await until(() => seen, 'the first chunk');
    one.signal('SIGTERM');
    const answer = await running;
    assert.equal(answer.text, dialect.stream());
    assert.equal(answer.ended, 'clean');
    await one.stop();
  });
});

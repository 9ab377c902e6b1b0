// A plain HTTP client that tells how an answer ended: SDKs and fetch hide what these tests are about.
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Waits until check gives something true; names what never came.
export async function until(check, what = 'condition', ms = 5000) {
  const end = Date.now() + ms;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > end) throw new Error(`${what} did not come within ${ms} ms`);
    await sleep(10);
  }
}

// → {status, headers, body: Buffer, text, ended: 'clean'|'cut', headMs, ms, chunks: [{ms, text}]}
// Rejects only when there is no answer at all. onChunk(text, request) may call
// request.destroy(); leaveMs does it after that time.
export function call(url, options = {}) {
  const began = performance.now();
  return new Promise((resolve, reject) => {
    const headers = { ...options.headers };
    let body = options.body;
    if (body !== undefined && typeof body !== 'string' && !Buffer.isBuffer(body)) {
      body = JSON.stringify(body);
      headers['content-type'] ??= 'application/json';
    }
    if (body !== undefined && headers['transfer-encoding'] === undefined)
      headers['content-length'] ??= Buffer.byteLength(body);
    if (options.key) headers.authorization = `Bearer ${options.key}`;
    const request = (String(url).startsWith('https:') ? https : http).request(url, {
      ca: options.ca,
      method: options.method ?? (body === undefined ? 'GET' : 'POST'),
      headers,
      agent: options.agent ?? false,
      socketPath: options.socketPath,
    });
    request.on('error', (error) => reject(error));
    request.setTimeout(options.timeout ?? 20000, () =>
      request.destroy(new Error(`no byte for ${options.timeout ?? 20000} ms: ${url}`)));
    if (options.leaveMs !== undefined) setTimeout(() => request.destroy(new Error('left')), options.leaveMs);
    request.on('response', (response) => {
      const answer = {
        status: response.statusCode, headers: response.headers, rawHeaders: response.rawHeaders,
        headMs: performance.now() - began, chunks: [],
      };
      const parts = [];
      const finish = (ended) => {
        answer.ended = ended;
        answer.ms = performance.now() - began;
        answer.body = Buffer.concat(parts);
        answer.text = answer.body.toString('utf8');
        resolve(answer);
      };
      options.onHead?.(answer, request);
      response.on('data', (bytes) => {
        parts.push(bytes);
        if (options.timed) answer.chunks.push({ ms: performance.now() - began, text: bytes.toString('utf8') });
        options.onChunk?.(bytes.toString('utf8'), request);
      });
      response.on('end', () => finish(response.complete ? 'clean' : 'cut'));
      response.on('error', () => finish('cut'));
    });
    request.end(body);
  });
}

export const json = (answer) => {
  try {
    return JSON.parse(answer.text);
  } catch (error) {
    throw new Error(`not JSON (${answer.status}, ${error.message}): ${answer.text.slice(0, 300)} … ${answer.text.slice(-100)}`);
  }
};

// Sends bytes as they are, collects until the peer closes or `until` matches.
export function raw(port, bytes, { stop, ms = 3000 } = {}) {
  return new Promise((resolve) => {
    let text = '';
    const socket = net.connect(port, '127.0.0.1', () => socket.write(bytes));
    const timer = setTimeout(() => done('timeout'), ms);
    const done = (how) => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ text, how });
    };
    socket.on('data', (data) => {
      text += data.toString('latin1');
      if (stop && stop.test(text)) done('matched');
    });
    socket.on('end', () => done('closed'));
    socket.on('error', () => done('reset'));
  });
}

// Server-sent events, the plain way: [{event, data, comment}].
export function events(text) {
  return text.split(/\r\n\r\n|\n\n|\r\r/).filter((block) => block.trim()).map((block) => {
    const out = { event: '', data: undefined, comment: undefined };
    for (const line of block.split(/\r\n|\n|\r/)) {
      if (line.startsWith(':')) out.comment = line;
      else if (line.startsWith('event:')) out.event = line.slice(6).trim();
      else if (line.startsWith('data:'))
        out.data = (out.data === undefined ? '' : `${out.data}\n`) + line.slice(5).replace(/^ /, '');
    }
    return out;
  });
}

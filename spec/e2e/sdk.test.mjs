// The official SDKs through the binary, against scripts in the providers' shapes.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { sleep, until } from './kit/http.mjs';
import { startFake, startGateway, stopAll } from './kit/kit.mjs';
import * as bodies from './kit/bodies.mjs';

const OpenAI = (await import('openai')).default;
const Anthropic = (await import('@anthropic-ai/sdk')).default;
const openaiErrors = await import('openai');
const anthropicErrors = await import('@anthropic-ai/sdk');

let fake, gateway, openai, anthropic;
const user = [{ role: 'user', content: 'Hi' }];

async function collect(stream) {
  const out = [];
  for await (const item of stream) out.push(item);
  return out;
}

before(async () => {
  fake = await startFake();
  gateway = await startGateway();
  await gateway.upstream({ name: 'oai', provider: 'openai', base_url: fake.url, is_default: true,
    models: ['gpt-1', 'up-embed', 'gpt-*'] });
  await gateway.upstream({ name: 'ant', provider: 'anthropic', base_url: fake.url, models: ['claude-1', 'claude-*'] });
  openai = new OpenAI({ apiKey: gateway.key, baseURL: `${gateway.url}/v1`, maxRetries: 0 });
  anthropic = new Anthropic({ apiKey: gateway.key, baseURL: gateway.url, maxRetries: 0 });
});
after(() => stopAll(gateway, fake));

// The fake must have seen that the gateway left, within a second of the client's leaving.
async function assertCancelled(script, leave) {
  const open = await until(async () => (await fake.requests(script)).find((one) => one.how === 'open'), 'a running call');
  const began = performance.now();
  leave();
  const ended = await until(async () => (await fake.requests(script)).find((one) => one.n === open.n && one.peer_closed),
    'cancel at the upstream', 3000);
  assert.ok(performance.now() - began < 1000, 'the upstream saw the cancel within a second');
  assert.equal(ended.how, 'peer_closed');
}

describe('OpenAI SDK', () => {
  test('chat', async () => {
    await fake.script('gpt-chat', { body: bodies.chatBody() });
    const answer = await openai.chat.completions.create({ model: 'gpt-chat', messages: user });
    assert.equal(answer.choices[0].message.content, 'Hello there.');
    assert.equal(answer.usage.total_tokens, 17);
    assert.ok(answer._request_id, 'a request id');
  });

  test('chat stream, include_usage not asked for', async () => {
    await fake.script('gpt-stream', { body: bodies.chatStream(), split: 'bytes' });
    const chunks = await collect(await openai.chat.completions.create({ model: 'gpt-stream', messages: user, stream: true }));
    assert.equal(chunks.map((one) => one.choices[0].delta.content ?? '').join(''), 'Hello there.');
    assert.ok(chunks.every((one) => one.choices.length === 1), 'no usage chunk');
    const [seen] = await fake.requests('gpt-stream');
    assert.equal(JSON.parse(seen.body).stream_options.include_usage, true);
  });

  test('chat stream with include_usage', async () => {
    await fake.script('gpt-stream-usage', { body: bodies.chatStream() });
    const chunks = await collect(await openai.chat.completions.create({ model: 'gpt-stream-usage', messages: user,
      stream: true, stream_options: { include_usage: true } }));
    assert.equal(chunks.at(-1).usage.total_tokens, 17);
  });

  test('chat tools, whole and streamed', async () => {
    const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object',
      properties: { city: { type: 'string' } } } } }];
    await fake.script('gpt-tools', { body: bodies.chatBody(null, { message: { tool_calls: bodies.chatToolCalls }, finish: 'tool_calls' }) });
    const whole = await openai.chat.completions.create({ model: 'gpt-tools', messages: user, tools });
    assert.deepEqual(JSON.parse(whole.choices[0].message.tool_calls[0].function.arguments), { city: 'Bern' });
    const [seen] = await fake.requests('gpt-tools');
    assert.deepEqual(JSON.parse(seen.body).tools, tools);
    await fake.script('gpt-tools-stream', { body: bodies.chatToolStream(), split: { random: 9, seed: 4 } });
    const final = await openai.chat.completions.stream({ model: 'gpt-tools-stream', messages: user, tools }).finalChatCompletion();
    assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), { city: 'Bern' });
    assert.equal(final.choices[0].finish_reason, 'tool_calls');
  });

  test('responses, whole and streamed', async () => {
    await fake.script('gpt-resp', { body: bodies.responsesBody() });
    const whole = await openai.responses.create({ model: 'gpt-resp', input: 'Hi' });
    assert.equal(whole.output_text, 'Hello there.');
    assert.equal(whole.usage.total_tokens, 26);
    await fake.script('gpt-resp-stream', { body: bodies.responsesStream(), split: { size: 37 } });
    const final = await openai.responses.stream({ model: 'gpt-resp-stream', input: 'Hi' }).finalResponse();
    assert.equal(final.output_text, 'Hello there.');
    assert.equal(final.status, 'completed');
  });

  test('embeddings: the base64 the SDK asks for, and floats', async () => {
    await fake.script('up-embed', { body: bodies.embeddingsBody(true) });
    const packed = await openai.embeddings.create({ model: 'up-embed', input: 'Hi' });
    assert.deepEqual(Array.from(packed.data[0].embedding), bodies.vector);
    await fake.script('up-embed', { body: bodies.embeddingsBody(false) });
    const floats = await openai.embeddings.create({ model: 'up-embed', input: 'Hi', encoding_format: 'float' });
    assert.deepEqual(floats.data[0].embedding, bodies.vector);
    const seen = (await fake.requests('up-embed')).map((one) => JSON.parse(one.body).encoding_format);
    assert.deepEqual(seen, ['base64', 'float']);
  });

  test('models list and one model', async () => {
    const ids = (await collect(await openai.models.list())).map((one) => one.id);
    for (const id of ['gpt-1', 'claude-1', 'demo']) assert.ok(ids.includes(id), `${id} in ${ids}`);
    assert.ok(ids.every((id) => !id.includes('*')));
    const one = await openai.models.retrieve('gpt-1');
    assert.deepEqual([one.id, one.object], ['gpt-1', 'model']);
    await assert.rejects(openai.models.retrieve('nope'), openaiErrors.NotFoundError);
  });

  test('abort of a stream reaches the upstream at once', async () => {
    await fake.script('gpt-abort', { body: bodies.chatStream(['a', 'b'], { end: false }), end: 'hang' });
    const stream = await openai.chat.completions.create({ model: 'gpt-abort', messages: user, stream: true });
    const first = await stream[Symbol.asyncIterator]().next();
    assert.equal(first.done, false);
    await assertCancelled('gpt-abort', () => stream.controller.abort());
  });

  test('abort before the answer', async () => {
    await fake.script('gpt-abort-early', { end: 'hang', at: -2 });
    const control = new AbortController();
    const call = openai.chat.completions.create({ model: 'gpt-abort-early', messages: user }, { signal: control.signal });
    call.catch(() => {});
    await assertCancelled('gpt-abort-early', () => control.abort());
    await assert.rejects(call, openaiErrors.APIUserAbortError);
  });

  for (const [status, type, code, Class] of [
    [400, 'invalid_request_error', 'unsupported_value', 'BadRequestError'],
    [404, 'invalid_request_error', 'model_not_found', 'NotFoundError'],
    [422, 'invalid_request_error', null, 'UnprocessableEntityError'],
    [429, 'requests', 'rate_limit_exceeded', 'RateLimitError'],
  ]) {
    test(`upstream's ${status} keeps status, code and shape`, async () => {
      await fake.script(`gpt-err-${status}`, { status, body: bodies.openaiError('No.', { type, code }) });
      const error = await openai.chat.completions.create({ model: `gpt-err-${status}`, messages: user }).catch((e) => e);
      assert.ok(error instanceof openaiErrors[Class], `${error.constructor.name}: ${error.message}`);
      assert.deepEqual([error.status, error.code, error.type], [status, code, type]);
      assert.ok(error.requestID);
    });
  }

  for (const status of [500, 401, 403, 418]) {
    test(`upstream's ${status} becomes 502`, async () => {
      await fake.script(`gpt-err-${status}`, { status, body: bodies.openaiError('Broken.') });
      const error = await openai.chat.completions.create({ model: `gpt-err-${status}`, messages: user }).catch((e) => e);
      assert.ok(error instanceof openaiErrors.InternalServerError, `${error}`);
      assert.equal(error.status, 502);
    });
  }

  test('a wrong key', async () => {
    const stranger = new OpenAI({ apiKey: 'sk-auto-wrong', baseURL: `${gateway.url}/v1`, maxRetries: 0 });
    const error = await stranger.models.list().catch((e) => e);
    assert.ok(error instanceof openaiErrors.AuthenticationError);
    assert.equal(error.code, 'invalid_api_key');
    assert.equal(error.headers.get('x-should-retry'), 'false');
  });

  test('an error inside the stream is thrown', async () => {
    await fake.script('gpt-midstream', { body: bodies.chatStream(['a'], { end: false }) + bodies.chatErrorFirst('late') });
    const stream = await openai.chat.completions.create({ model: 'gpt-midstream', messages: user, stream: true });
    await assert.rejects(collect(stream), /late/);
  });

  test('no retry storm: x-should-retry false is obeyed', async () => {
    const patient = new OpenAI({ apiKey: gateway.key, baseURL: `${gateway.url}/v1`, maxRetries: 2 });
    await fake.script('gpt-quota', { status: 429, body: bodies.openaiError('No money.', { type: 'insufficient_quota', code: 'insufficient_quota' }) });
    await assert.rejects(patient.chat.completions.create({ model: 'gpt-quota', messages: user }), openaiErrors.RateLimitError);
    await sleep(50);
    assert.equal((await fake.requests('gpt-quota')).length, 1);
  });

  test('the demo model streams with no upstream', async () => {
    const chunks = await collect(await openai.chat.completions.create({ model: 'demo', messages: user, stream: true }));
    assert.ok(chunks.map((one) => one.choices[0]?.delta.content ?? '').join('').length > 0);
    assert.equal(chunks.findLast((one) => one.choices[0]?.finish_reason).choices[0].finish_reason, 'stop');
  });
});

describe('Anthropic SDK', () => {
  const request = (model) => ({ model, max_tokens: 100, messages: user });

  test('messages', async () => {
    await fake.script('claude-whole', { body: bodies.messagesBody() });
    const answer = await anthropic.messages.create(request('claude-whole'));
    assert.equal(answer.content[0].text, 'Hello there.');
    assert.equal(answer.usage.output_tokens, 7);
    assert.ok(answer._request_id);
    const [seen] = await fake.requests('claude-whole');
    assert.equal(seen.header['x-api-key'], 'sk-upstream-0123456789');
    assert.equal(seen.header.authorization, undefined);
    assert.equal(seen.header['anthropic-version'], '2026-10-21');
  });

  test('messages stream', async () => {
    await fake.script('claude-stream', { body: bodies.messagesStream(), split: 'bytes' });
    const message = await anthropic.messages.stream(request('claude-stream')).finalMessage();
    assert.equal(message.content[0].text, 'Hello there.');
    assert.equal(message.stop_reason, 'end_turn');
    assert.equal(message.usage.cache_read_input_tokens, 5);
  });

  test('tools, whole and streamed', async () => {
    const tools = [{ name: 'weather', input_schema: { type: 'object', properties: { city: { type: 'string' } } } }];
    const block = { type: 'tool_use', id: 'toolu_1', name: 'weather', input: { city: 'Bern' } };
    await fake.script('claude-tools', { body: bodies.messagesBody('', { content: [block], stop_reason: 'tool_use' }) });
    const whole = await anthropic.messages.create({ ...request('claude-tools'), tools });
    assert.deepEqual(whole.content[0], block);
    await fake.script('claude-tools-stream', { body: bodies.messagesToolStream(), split: { random: 7, seed: 2 } });
    const streamed = await anthropic.messages.stream({ ...request('claude-tools-stream'), tools }).finalMessage();
    assert.deepEqual(streamed.content[0].input, { city: 'Bern' });
    assert.equal(streamed.stop_reason, 'tool_use');
  });

  test('count_tokens', async () => {
    await fake.script('claude-count', { body: { input_tokens: 42 } });
    const answer = await anthropic.messages.countTokens({ model: 'claude-count', messages: user });
    assert.equal(answer.input_tokens, 42);
    const [seen] = await fake.requests('claude-count');
    assert.equal(seen.target, '/v1/messages/count_tokens');
  });

  test('models', async () => {
    const list = await collect(await anthropic.models.list());
    const one = list.find((model) => model.id === 'claude-1');
    assert.equal(one.type, 'model');
    assert.ok(Date.parse(one.created_at) > 0);
    assert.equal((await anthropic.models.retrieve('claude-1')).id, 'claude-1');
  });

  test('abort of a stream reaches the upstream at once', async () => {
    await fake.script('claude-abort', { body: bodies.messagesStream(['a'], { end: false }), end: 'hang' });
    const stream = anthropic.messages.stream(request('claude-abort'));
    stream.on('error', () => {});
    stream.on('abort', () => {});
    await new Promise((resolve) => { stream.on('text', resolve); });
    await assertCancelled('claude-abort', () => stream.abort());
    await stream.done().catch(() => {});
  });

  for (const [status, type, Class] of [
    [400, 'invalid_request_error', 'BadRequestError'],
    [404, 'not_found_error', 'NotFoundError'],
    [413, 'request_too_large', 'APIError'],
    [429, 'rate_limit_error', 'RateLimitError'],
  ]) {
    test(`upstream's ${status} keeps status and shape`, async () => {
      await fake.script(`claude-err-${status}`, { status, body: bodies.claudeError('No.', type) });
      const error = await anthropic.messages.create(request(`claude-err-${status}`)).catch((e) => e);
      assert.ok(error instanceof anthropicErrors[Class], `${error}`);
      assert.equal(error.status, status);
      assert.equal(error.error.error.type, type);
      assert.ok(error.requestID);
    });
  }

  for (const [status, wanted] of [[529, 503], [500, 502], [401, 502]]) {
    test(`upstream's ${status} becomes ${wanted}`, async () => {
      await fake.script(`claude-err-${status}`, { status, body: bodies.claudeError('Broken.', 'api_error') });
      const error = await anthropic.messages.create(request(`claude-err-${status}`)).catch((e) => e);
      assert.equal(error.status, wanted, `${error}`);
      assert.equal(error.error.type, 'error');
    });
  }

  test('a wrong key', async () => {
    const stranger = new Anthropic({ apiKey: 'sk-auto-wrong', baseURL: gateway.url, maxRetries: 0 });
    const error = await stranger.messages.create(request('claude-1')).catch((e) => e);
    assert.ok(error instanceof anthropicErrors.AuthenticationError, `${error}`);
    assert.equal(error.error.error.type, 'authentication_error');
  });

  test('an error inside the stream is thrown', async () => {
    await fake.script('claude-midstream', { body: bodies.messagesStream(['a'], { end: false }) + bodies.messagesErrorFirst() });
    await assert.rejects(anthropic.messages.stream(request('claude-midstream')).finalMessage(), /[Oo]verloaded/);
  });

  test('the demo model answers in the Claude dialect', async () => {
    const message = await anthropic.messages.create(request('demo'));
    assert.equal(message.type, 'message');
    assert.ok(message.content[0].text.length > 0);
  });
});

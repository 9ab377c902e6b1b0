// Answers of the three dialects, in the providers' shapes, for the fake upstream's scripts.

const sse = (items) => items.map(([event, data]) =>
  `${event ? `event: ${event}\n` : ''}data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`).join('');

// --- chat completions

export const chatUsage = { prompt_tokens: 12, completion_tokens: 5, total_tokens: 17,
  prompt_tokens_details: { cached_tokens: 4 }, completion_tokens_details: { reasoning_tokens: 2 } };

export const chatBody = (content = 'Hello there.', more = {}) => ({
  id: 'chatcmpl-e2e', object: 'chat.completion', created: 1790000000, model: 'up-1',
  choices: [{ index: 0, message: { role: 'assistant', content, refusal: null, ...more.message }, logprobs: null,
    finish_reason: more.finish ?? 'stop' }],
  usage: chatUsage, system_fingerprint: null,
});

const chunk = (choices, more = {}) => ['', { id: 'chatcmpl-e2e', object: 'chat.completion.chunk',
  created: 1790000000, model: 'up-1', choices, ...more }];
const delta = (value, finish = null) => chunk([{ index: 0, delta: value, logprobs: null, finish_reason: finish }],
  { usage: null });

export const chatStream = (texts = ['Hel', 'lo ', 'there.'], { usage = true, end = true } = {}) => sse([
  delta({ role: 'assistant', content: '' }),
  ...texts.map((content) => delta({ content })),
  ...(end ? [delta({}, 'stop')] : []),
  ...(usage && end ? [chunk([], { usage: chatUsage })] : []),
  ...(end ? [['', '[DONE]']] : []),
]);

export const chatToolCalls = [{ id: 'call_1', type: 'function', function: { name: 'weather', arguments: '{"city":"Bern"}' } }];

export const chatToolStream = () => sse([
  delta({ role: 'assistant', content: null }),
  delta({ tool_calls: [{ index: 0, id: 'call_1', type: 'function', function: { name: 'weather', arguments: '' } }] }),
  delta({ tool_calls: [{ index: 0, function: { arguments: '{"city":' } }] }),
  delta({ tool_calls: [{ index: 0, function: { arguments: '"Bern"}' } }] }),
  delta({}, 'tool_calls'),
  chunk([], { usage: chatUsage }),
  ['', '[DONE]'],
]);

export const chatErrorFirst = (message = 'overloaded', code = 'server_error') =>
  sse([['', { error: { message, type: 'server_error', param: null, code } }]]);

export const openaiError = (message, { type = 'invalid_request_error', code = null, param = null } = {}) =>
  ({ error: { message, type, param, code } });

// --- embeddings

export const vector = [0.5, -0.25, 1.5];
const packed = Buffer.from(new Float32Array(vector).buffer).toString('base64');
export const embeddingsBody = (isBase64) => ({
  object: 'list', model: 'up-embed', usage: { prompt_tokens: 7, total_tokens: 7 },
  data: [{ object: 'embedding', index: 0, embedding: isBase64 ? packed : vector }],
});

// --- responses

const responseObject = (status, text, more = {}) => ({
  id: 'resp_e2e', object: 'response', created_at: 1790000000, status, error: null, incomplete_details: null,
  instructions: null, model: 'up-1', parallel_tool_calls: true, tool_choice: 'auto', tools: [], metadata: {},
  output: text === undefined ? [] : [{ id: 'msg_e2e', type: 'message', status: 'completed', role: 'assistant',
    content: [{ type: 'output_text', text, annotations: [] }] }],
  usage: status === 'completed' ? { input_tokens: 20, input_tokens_details: { cached_tokens: 8 }, output_tokens: 6,
    output_tokens_details: { reasoning_tokens: 1 }, total_tokens: 26 } : null, ...more,
});

export const responsesBody = (text = 'Hello there.', more) => responseObject('completed', text, more);

export const responsesStream = (texts = ['Hel', 'lo ', 'there.'], { end = true } = {}) => {
  let n = 0;
  const item = { id: 'msg_e2e', type: 'message', status: 'in_progress', role: 'assistant', content: [] };
  const part = { type: 'output_text', text: '', annotations: [] };
  const at = { item_id: 'msg_e2e', output_index: 0, content_index: 0 };
  const event = (type, more) => [type, { type, sequence_number: n++, ...more }];
  return sse([
    event('response.created', { response: responseObject('in_progress') }),
    event('response.in_progress', { response: responseObject('in_progress') }),
    event('response.output_item.added', { output_index: 0, item }),
    event('response.content_part.added', { ...at, part }),
    ...texts.map((text) => event('response.output_text.delta', { ...at, delta: text, logprobs: [] })),
    ...(end ? [
      event('response.output_text.done', { ...at, text: texts.join(''), logprobs: [] }),
      event('response.content_part.done', { ...at, part: { ...part, text: texts.join('') } }),
      event('response.output_item.done', { output_index: 0,
        item: { ...item, status: 'completed', content: [{ ...part, text: texts.join('') }] } }),
      event('response.completed', { response: responseObject('completed', texts.join('')) }),
    ] : []),
  ]);
};

export const responsesErrorFirst = () => sse([
  ['response.created', { type: 'response.created', sequence_number: 0, response: responseObject('in_progress') }],
  ['error', { type: 'error', sequence_number: 1, code: 'server_error', message: 'overloaded', param: null }],
  ['response.failed', { type: 'response.failed', sequence_number: 2,
    response: responseObject('failed', undefined, { error: { code: 'server_error', message: 'overloaded' } }) }],
]);

// --- messages

export const messagesUsage = { input_tokens: 10, cache_creation_input_tokens: 3, cache_read_input_tokens: 5,
  output_tokens: 7 };

export const messagesBody = (text = 'Hello there.', more = {}) => ({
  id: 'msg_e2e', type: 'message', role: 'assistant', model: 'claude-up', content: [{ type: 'text', text }],
  stop_reason: 'end_turn', stop_sequence: null, usage: messagesUsage, ...more,
});

const start = ['message_start', { type: 'message_start', message: { ...messagesBody('', { content: [],
  stop_reason: null, usage: { ...messagesUsage, output_tokens: 1 } }) } }];
const close = (reason) => [
  ['content_block_stop', { type: 'content_block_stop', index: 0 }],
  ['message_delta', { type: 'message_delta', delta: { stop_reason: reason, stop_sequence: null }, usage: { output_tokens: 7 } }],
  ['message_stop', { type: 'message_stop' }],
];

export const messagesStream = (texts = ['Hel', 'lo ', 'there.'], { end = true } = {}) => sse([
  start,
  ['content_block_start', { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } }],
  ['ping', { type: 'ping' }],
  ...texts.map((text) => ['content_block_delta',
    { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text } }]),
  ...(end ? close('end_turn') : []),
]);

export const messagesToolStream = () => sse([
  start,
  ['content_block_start', { type: 'content_block_start', index: 0,
    content_block: { type: 'tool_use', id: 'toolu_1', name: 'weather', input: {} } }],
  ...['{"city":', '"Bern"}'].map((partial_json) => ['content_block_delta',
    { type: 'content_block_delta', index: 0, delta: { type: 'input_json_delta', partial_json } }]),
  ...close('tool_use'),
]);

export const claudeError = (message, type = 'invalid_request_error') =>
  ({ type: 'error', error: { type, message }, request_id: 'req_up' });

export const messagesErrorFirst = () =>
  sse([['error', { type: 'error', error: { type: 'overloaded_error', message: 'Overloaded' } }]]);

// The three dialects, for tests that must hold in each.
export const dialects = {
  chat: {
    path: '/v1/chat/completions', provider: 'openai',
    request: (model, stream = true) => ({ model, stream, messages: [{ role: 'user', content: 'Hi' }],
      ...(stream ? { stream_options: { include_usage: true } } : {}) }),
    body: chatBody, stream: chatStream, errorFirst: chatErrorFirst,
    upstreamError: (message, type) => openaiError(message, { type }),
    isError: (value) => typeof value?.error?.message === 'string' && 'type' in value.error && 'code' in value.error,
    isCleanEnd: (text) => /\[DONE\]/.test(text) || /"finish_reason":"/.test(text),
    streamError: (events) => events.some((one) => one.data?.startsWith('{"error"')),
  },
  responses: {
    path: '/v1/responses', provider: 'openai',
    request: (model, stream = true) => ({ model, stream, input: 'Hi' }),
    body: responsesBody, stream: responsesStream, errorFirst: responsesErrorFirst,
    upstreamError: (message, type) => openaiError(message, { type }),
    isError: (value) => typeof value?.error?.message === 'string' && 'type' in value.error && 'code' in value.error,
    isCleanEnd: (text) => /response\.completed/.test(text),
    streamError: (events) => events.some((one) => one.event === 'response.failed' &&
      JSON.parse(one.data).response.error.code),
  },
  messages: {
    path: '/v1/messages', provider: 'anthropic',
    request: (model, stream = true) => ({ model, stream, max_tokens: 100, messages: [{ role: 'user', content: 'Hi' }] }),
    body: messagesBody, stream: messagesStream, errorFirst: messagesErrorFirst,
    upstreamError: (message, type) => claudeError(message, type),
    isError: (value) => value?.type === 'error' && typeof value.error?.type === 'string' &&
      typeof value.error.message === 'string' && typeof value.request_id === 'string',
    isCleanEnd: (text) => /message_stop/.test(text) || /"stop_reason":"/.test(text),
    streamError: (events) => events.some((one) => one.event === 'error' && JSON.parse(one.data).type === 'error'),
  },
};

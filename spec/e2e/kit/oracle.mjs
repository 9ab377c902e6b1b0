// What a recording should give, read the plain way from its whole text; shares nothing with core/.

export function parseEvents(text) {
  const lines = text.replace(/^\ufeff/, '').split(/\r\n|\n|\r/);
  const out = [];
  let event = '', data;
  for (const line of [...lines, '']) {
    if (line === '') {
      if (data !== undefined) out.push({ event, data });
      event = '';
      data = undefined;
    } else if (!line.startsWith(':')) {
      const colon = line.indexOf(':');
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
      if (name === 'data') data = data === undefined ? value : `${data}\n${value}`;
      if (name === 'event') event = value;
    }
  }
  return out.map((one) => {
    try {
      return { ...one, value: JSON.parse(one.data) };
    } catch {
      return { ...one, value: undefined };
    }
  });
}

const number = (value) => (Number.isSafeInteger(value) && value >= 0 && value < 2 ** 40 ? value : undefined);

function openaiUsage(u, names) {
  const inside = u[`${names.in}_details`] ?? {}, outside = u[`${names.out}_details`] ?? {};
  const prompt = number(u[names.in]), completion = number(u[names.out]) ?? 0, total = number(u.total_tokens);
  if (prompt === undefined || u.prompt_audio_seconds !== undefined) return { odd: true };
  const all = [u[names.in], u[names.out], u.total_tokens, ...Object.values(inside), ...Object.values(outside)];
  if (all.some((value) => typeof value === 'number' && number(value) === undefined)) return { odd: true };
  const cached = Math.min(number(inside.cached_tokens) || number(u.cached_tokens) || number(u.num_cached_tokens) ||
    number(u.prompt_cache_hit_tokens) || 0, prompt);
  // Some providers count reasoning beside the completion; only the total tells.
  const output = total !== undefined && total > prompt + completion ? total - prompt : completion;
  const written = Math.min(number(inside.cache_write_tokens) || number(u.cache_creation_input_tokens) || 0,
    prompt - cached);
  return { prompt, completion: output, cache_read: cached, cache_write: written };
}

function claudeUsage(u) {
  const read = number(u.cache_read_input_tokens) ?? 0, write = number(u.cache_creation_input_tokens) ?? 0;
  const input = number(u.input_tokens), output = number(u.output_tokens);
  if (input === undefined && output === undefined) return undefined;
  return { prompt: (input ?? 0) + read + write, completion: output ?? 0, cache_read: read, cache_write: write };
}

export function usageOf(api, objects) {
  if (api === 'messages') {
    const merged = {}; // the last value of each field wins
    for (const object of objects) {
      for (const u of [object?.message?.usage, object?.usage]) {
        for (const [name, value] of Object.entries(u ?? {})) if (value !== null) merged[name] = value;
      }
    }
    return Object.keys(merged).length ? claudeUsage(merged) : undefined;
  }
  let found;
  for (const object of objects) {
    const u = api === 'responses' ? object?.response?.usage ?? (object?.object === 'response' ? object.usage : undefined)
      : object?.usage ?? object?.x_groq?.usage;
    if (u && typeof u === 'object' && Object.keys(u).length) found = u;
  }
  if (!found) return undefined;
  return openaiUsage(found, api === 'responses' ? { in: 'input_tokens', out: 'output_tokens' }
    : { in: 'prompt_tokens', out: 'completion_tokens' });
}

const isErrorObject = (value, event) => Boolean(value && (value.error && (event === 'error' || value.error.message ||
  typeof value.error === 'string' || value.type === 'error')) || event === 'error' || value?.type === 'error' ||
  value?.object === 'error' || value?.type === 'response.failed');

// What comes after the end is not part of the answer; some recordings are several, one after another.
function untilEnd(api, list) {
  const end = list.findIndex((one) => api === 'messages' ? one.value?.type === 'message_stop' : one.data.startsWith('[DONE]'));
  return end < 0 ? list : list.slice(0, end + 1);
}

export function readStream(api, text) {
  const list = untilEnd(api, parseEvents(text));
  const values = list.map((one) => one.value).filter((value) => value && typeof value === 'object');
  const has = (type) => list.some((one) => one.value?.type === type);
  const isDone = api === 'messages' ? has('message_stop')
    : api === 'responses' ? ['response.completed', 'response.incomplete', 'response.failed'].some(has)
      : list.some((one) => one.data.startsWith('[DONE]')) ||
        values.some((value) => value.choices?.some((choice) => choice.finish_reason));
  return { list, isDone, usage: usageOf(api, values),
    hasError: list.some((one) => isErrorObject(one.value, one.event)) };
}

export function readBody(api, text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return { isBroken: true };
  }
  return { value, usage: usageOf(api, [value]), hasError: isErrorObject(value, '') ||
    (value?.object === 'response' && value.status === 'failed') };
}

// The recording without what injected include_usage brings: events with choices [] and a usage object.
export function withoutUsageChunks(text) {
  const out = [];
  let dropped = 0, isDone = false;
  for (const block of text.match(/[\s\S]*?(?:\r\n\r\n|\n\n|\r\r)(?:\r\n|\n|\r)*|[\s\S]+$/g) ?? []) {
    const [one] = parseEvents(block);
    const value = one?.value;
    isDone ||= Boolean(one?.data.startsWith('[DONE]'));
    if (!isDone && value && Array.isArray(value.choices) && value.choices.length === 0 && value.usage &&
      typeof value.usage === 'object') dropped++;
    else out.push(block);
  }
  return { text: out.join(''), dropped };
}

// OpenAI's SDK for Node.

import OpenAI from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import {
  ADAPTER, BASE, CONTINUE, IMAGE, KEY, PREFILL, QUESTION, SCHEMA, run,
} from './asking.mjs';

const USER = [{ role: 'user', content: QUESTION }];
const TOOL = {
  type: 'function',
  function: { name: 'ship', description: 'Ships the order.', parameters: SCHEMA },
};
const NAMED = { type: 'function', function: { name: 'ship' } };
const FIELDS = { model: ADAPTER, messages: USER, max_tokens: 12, temperature: 0 };
const Delivery = z.object({ city: z.string().max(12), gift: z.boolean() });

const client = (root) => new OpenAI({ baseURL: `${root}/v1`, apiKey: KEY });

function told(answer) {
  const { finish_reason, message } = answer.choices[0];
  const got = { model: answer.model, finish: finish_reason };
  if (message.content) got.text = message.content;
  if (message.tool_calls?.length) {
    const { name, arguments: given } = message.tool_calls[0].function;
    got.tool = { name, arguments: given };
  }
  return { ...got, tokens: answer.usage.completion_tokens };
}

const chat = async (root, fields = {}) =>
  told(await client(root).chat.completions.create({ ...FIELDS, ...fields }));

async function stream(root, fields = {}) {
  const asked = { ...FIELDS, ...fields, stream_options: { include_usage: true } };
  return told(await client(root).chat.completions.stream(asked).finalChatCompletion());
}

async function models(root) {
  const names = [];
  for await (const model of client(root).models.list()) names.push(model.id);
  return { models: names.sort() };
}

async function schema(root) {
  const answer = await client(root).chat.completions.parse({
    ...FIELDS,
    max_tokens: 60,
    response_format: zodResponseFormat(Delivery, 'delivery'),
  });
  return { ...told(answer), parsed: answer.choices[0].message.parsed };
}

async function logprobs(root) {
  const answer = await client(root).chat.completions.create({
    ...FIELDS, max_tokens: 3, logprobs: true, top_logprobs: 2,
  });
  const { content } = answer.choices[0].logprobs;
  return { ...told(answer), logprobs: content.map((each) => each.top_logprobs.length) };
}

const call = { name: 'ship', arguments: '{"city": "Oslo", "gift": false}' };
const RESULT = [
  ...USER,
  { role: 'assistant', tool_calls: [{ id: 'c1', type: 'function', function: call }] },
  { role: 'tool', tool_call_id: 'c1', content: 'shipped' },
];
const PICTURE = [
  { type: 'text', text: 'What is this?' },
  { type: 'image_url', image_url: { url: IMAGE } },
];
const RESPONSE = { model: ADAPTER, input: QUESTION, max_output_tokens: 12 };
const response = (answer) => ({
  model: answer.model, finish: answer.status, text: answer.output_text,
});

await run({
  models,
  chat,
  stream,
  limit: (root) => chat(root, { max_tokens: undefined, max_completion_tokens: 5 }),
  developer: (root) =>
    chat(root, { messages: [{ role: 'developer', content: 'Answer in JSON.' }, ...USER] }),
  parts: (root) =>
    chat(root, { messages: [{ role: 'user', content: [{ type: 'text', text: QUESTION }] }] }),
  habits: (root) =>
    chat(root, {
      store: false, metadata: { team: 'orders' }, user: 'ada', seed: 1,
      parallel_tool_calls: true, reasoning_effort: 'low', service_tier: 'auto',
    }),
  schema,
  logprobs,
  tool: (root) => chat(root, { max_tokens: 60, tools: [TOOL], tool_choice: NAMED }),
  tool_stream: (root) => stream(root, { max_tokens: 60, tools: [TOOL], tool_choice: 'required' }),
  tool_result: (root) => chat(root, { messages: RESULT, tools: [TOOL] }),
  prefill: (root) =>
    chat(root, { messages: [...USER, { role: 'assistant', content: PREFILL }], ...CONTINUE }),
  responses: async (root) => response(await client(root).responses.create(RESPONSE)),
  responses_stream: async (root) =>
    response(await client(root).responses.stream(RESPONSE).finalResponse()),
  image: (root) => chat(root, { messages: [{ role: 'user', content: PICTURE }] }),
  embeddings: async (root) => {
    const answer = await client(root).embeddings.create({ model: BASE, input: 'a' });
    return { vectors: answer.data.length };
  },
  unknown_model: (root) => chat(root, { model: 'orders-jsom' }),
});

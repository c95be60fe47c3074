// The Vercel AI SDK: what its two providers, openai-compatible and openai, have in common.

import { Output, embed, generateText, jsonSchema, streamText, tool } from 'ai';
import { ADAPTER, BASE, IMAGE, PREFILL, QUESTION, SCHEMA } from './asking.mjs';

const USER = [{ role: 'user', content: QUESTION }];
const TOOLS = {
  ship: tool({ description: 'Ships the order.', inputSchema: jsonSchema(SCHEMA) }),
};
const NAMED = { type: 'tool', toolName: 'ship' };

async function told(answer) {
  const [text, calls, usage, response] = await Promise.all([
    answer.text, answer.toolCalls, answer.usage, answer.response,
  ]);
  const got = { model: response.modelId, finish: await answer.finishReason };
  if (text) got.text = text;
  if (calls.length) got.tool = { name: calls[0].toolName, arguments: calls[0].input };
  return { ...got, tokens: usage.outputTokens };
}

// The cases of a provider: `chat(root, model)` and `embedding(root, model)` make its models.
export function cases({ chat: model, embedding, options = {}, continuing }) {
  const fields = (root, given) => ({
    model: model(root, given.model ?? ADAPTER),
    messages: USER,
    maxOutputTokens: 12,
    temperature: 0,
    providerOptions: options,
    ...given.fields,
  });
  const chat = async (root, given = {}) => told(await generateText(fields(root, given)));
  const stream = async (root, given = {}) => {
    let failure;
    const answer = streamText({
      ...fields(root, given),
      onError: ({ error }) => {
        failure = error;
      },
    });
    await answer.consumeStream();
    if (failure) throw failure;
    return told(answer);
  };
  const toolResult = [
    ...USER,
    {
      role: 'assistant',
      content: [
        { type: 'tool-call', toolCallId: 'c1', toolName: 'ship', input: { city: 'Oslo', gift: false } },
      ],
    },
    {
      role: 'tool',
      content: [
        {
          type: 'tool-result', toolCallId: 'c1', toolName: 'ship',
          output: { type: 'text', value: 'shipped' },
        },
      ],
    },
  ];
  return {
    chat,
    stream,
    limit: (root) => chat(root, { fields: { maxOutputTokens: 5 } }),
    developer: (root) => chat(root, { fields: { instructions: 'Answer in JSON.' } }),
    parts: (root) =>
      chat(root, {
        fields: {
          messages: [
            { role: 'user', content: [{ type: 'text', text: 'two blue' }, { type: 'text', text: ' lamps' }] },
          ],
        },
      }),
    schema: async (root) => {
      const answer = await generateText({
        ...fields(root, { fields: { maxOutputTokens: 60 } }),
        output: Output.object({ schema: jsonSchema(SCHEMA), name: 'delivery' }),
      });
      return { ...(await told(answer)), parsed: answer.output };
    },
    tool: (root) =>
      chat(root, { fields: { maxOutputTokens: 60, tools: TOOLS, toolChoice: NAMED } }),
    tool_stream: (root) =>
      stream(root, { fields: { maxOutputTokens: 60, tools: TOOLS, toolChoice: 'required' } }),
    tool_result: (root) => chat(root, { fields: { messages: toolResult, tools: TOOLS } }),
    ...(continuing && {
      prefill: (root) =>
        chat(root, {
          fields: {
            messages: [...USER, { role: 'assistant', content: PREFILL }],
            providerOptions: continuing,
          },
        }),
    }),
    image: (root) =>
      chat(root, {
        fields: {
          messages: [
            {
              role: 'user',
              content: [
                { type: 'text', text: 'What is this?' },
                { type: 'file', mediaType: 'image/png', data: IMAGE },
              ],
            },
          ],
        },
      }),
    embeddings: async (root) => {
      const answer = await embed({ model: embedding(root, BASE), value: 'a' });
      return { vectors: answer.embedding.length };
    },
    unknown_model: (root) => chat(root, { model: 'orders-jsom' }),
  };
}

// The Vercel AI SDK with @ai-sdk/openai: its models ask the Responses API, `.chat` the other one.

import { createOpenAI } from '@ai-sdk/openai';
import { generateText, streamText } from 'ai';
import { cases } from './ai_sdk.mjs';
import { ADAPTER, KEY, QUESTION, run } from './asking.mjs';

const provider = (root) => createOpenAI({ baseURL: `${root}/v1`, apiKey: KEY });
const asked = (root) => ({
  model: provider(root)(ADAPTER), prompt: QUESTION, maxOutputTokens: 12,
});

async function told(answer) {
  const response = await answer.response;
  return {
    model: response.modelId, finish: await answer.finishReason, text: await answer.text,
    tokens: (await answer.usage).outputTokens,
  };
}

const common = cases({
  chat: (root, model) => provider(root).chat(model),
  embedding: (root, model) => provider(root).embeddingModel(model),
  options: { openai: { systemMessageMode: 'developer' } },
});

await run({
  ...common,
  logprobs: async (root) => {
    const answer = await generateText({
      model: provider(root).chat(ADAPTER), prompt: QUESTION, maxOutputTokens: 3,
      providerOptions: { openai: { logprobs: 2 } },
    });
    const content = answer.providerMetadata.openai.logprobs;
    return { ...(await told(answer)), logprobs: content.map((each) => each.top_logprobs.length) };
  },
  responses: async (root) => told(await generateText(asked(root))),
  responses_stream: async (root) => {
    const answer = streamText(asked(root));
    await answer.consumeStream();
    return told(answer);
  },
});

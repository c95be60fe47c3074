// The Vercel AI SDK with @ai-sdk/openai-compatible.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { cases } from './ai_sdk.mjs';
import { CONTINUE, KEY, run } from './asking.mjs';

const provider = (root) =>
  createOpenAICompatible({
    name: 'lorry', baseURL: `${root}/v1`, apiKey: KEY,
    includeUsage: true, supportsStructuredOutputs: true,
  });

await run(
  cases({
    chat: (root, model) => provider(root)(model),
    embedding: (root, model) => provider(root).embeddingModel(model),
    continuing: { lorry: CONTINUE },
  }),
);

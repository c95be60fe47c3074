"""The paths of vLLM's app that callers can reach, and what each does in OpenTelemetry's terms.

An allow-list: everything else of vLLM's app (/invocations, profiling, the LoRA routes) stays
inside. Every path here takes a JSON object with `model`.
"""

from __future__ import annotations

# path -> gen_ai.operation.name where the convention has one, else our own word
INFERENCE_PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/messages/count_tokens": "count_tokens",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}

# Headers by which a caller could steer vLLM past us: its adapter, its priority, its replica, its
# session, its trace parent (our span is the parent) and its request id (ours is unique).
STRIPPED_HEADERS = frozenset(
    {
        b"x-amzn-sagemaker-adapter-identifier",
        b"x-amzn-sagemaker-adapter-alias",
        b"x-vllm-priority",
        b"x-data-parallel-rank",
        b"x-session-id",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
    }
)

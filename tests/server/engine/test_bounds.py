"""What one request may ask of the engine, read from vLLM's own request objects."""

from __future__ import annotations

import pytest

from server.engine.bounds import RequestBounds
from server.errors import InvalidRequest

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

BOUNDS = RequestBounds(sequences=32, context=1_000, characters=10_000)
HELLO = [{"role": "user", "content": "hi"}]
LONG = "a" * 10_001
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def request(kind, **fields):
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import (
        DetokenizeRequest,
        TokenizeChatRequest,
        TokenizeCompletionRequest,
    )

    models = {
        "chat": ChatCompletionRequest,
        "completion": CompletionRequest,
        "responses": ResponsesRequest,
        "messages": AnthropicMessagesRequest,
        "tokenize": TokenizeCompletionRequest,
        "tokenize chat": TokenizeChatRequest,
        "detokenize": DetokenizeRequest,
    }
    return models[kind](model="m", **fields)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("chat", {"messages": HELLO, "n": 32}),
        ("chat", {"messages": HELLO, "logprobs": True, "top_logprobs": 20}),
        ("chat", {"messages": HELLO, "n": 8, "logprobs": True, "top_logprobs": 20, "stream": True}),
        ("completion", {"prompt": [1] * 900, "n": 32}),
        ("completion", {"prompt": ["a"] * 32}),
        ("completion", {"prompt": "a" * 10_000, "prompt_logprobs": 5}),
        ("completion", {"prompt": [LONG, LONG]}),  # vLLM bounds each prompt
        ("completion", {"prompt": LONG, "truncate_prompt_tokens": 5}),
        ("responses", {"input": "hi"}),
        ("messages", {"messages": HELLO, "max_tokens": 5}),
        ("tokenize", {"prompt": "a" * 10_000}),
        ("detokenize", {"tokens": [1] * 1_000}),
    ],
)
def test_an_ordinary_request_passes(kind, fields):
    BOUNDS.check(request(kind, **fields))


@pytest.mark.parametrize(
    ("code", "kind", "fields"),
    [
        ("too_many_sequences", "chat", {"messages": HELLO, "n": 33}),
        ("too_many_sequences", "completion", {"prompt": ["a"] * 33}),
        ("too_many_sequences", "completion", {"prompt": [[1]] * 17, "n": 2}),
        ("context_length_exceeded", "tokenize", {"prompt": LONG}),
        (
            "context_length_exceeded",
            "tokenize chat",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]},
        ),
        ("context_length_exceeded", "responses", {"input": LONG}),
        ("context_length_exceeded", "responses", {"input": [{"role": "user", "content": LONG}]}),
        (
            "context_length_exceeded",
            "messages",
            {"messages": [{"role": "user", "content": LONG}], "max_tokens": 5},
        ),
        ("context_length_exceeded", "detokenize", {"tokens": [1] * 1_001}),
        ("invalid_request", "completion", {"prompt": "a", "stop_token_ids": [1] * 1_025}),
        ("invalid_request", "chat", {"messages": HELLO, "tools": [TOOL] * 513}),
        (
            "too_many_logprobs",
            "chat",
            {"messages": HELLO, "n": 8, "logprobs": True, "top_logprobs": 20},
        ),
        (
            "too_many_logprobs",
            "chat",
            {
                **{"messages": HELLO, "n": 8, "logprobs": True, "top_logprobs": 20},
                **{"max_tokens": 1, "max_completion_tokens": 1_000},
            },
        ),
        (
            "too_many_logprobs",
            "completion",
            {"prompt": "a", "max_tokens": 1_000, "logprobs": 1, "logprob_token_ids": [1] * 60},
        ),
        (
            "too_many_logprobs",
            "completion",
            {"prompt": ["a" * 900] * 20, "prompt_logprobs": 2},
        ),
        (
            "too_many_logprobs",
            "completion",
            {"prompt": [[1] * 900] * 20, "echo": True, "logprobs": 1},
        ),
    ],
)
def test_a_request_that_asks_for_more_is_refused(code, kind, fields):
    with pytest.raises(InvalidRequest) as refused:
        BOUNDS.check(request(kind, **fields))
    assert refused.value.code == code

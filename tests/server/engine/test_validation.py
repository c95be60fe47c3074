"""An invalid body yields few errors, however large it is; a valid one is read as before."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from pydantic import ValidationError

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

MANY = 2_000
ZEROS, EMPTY = [0] * MANY, [{}] * MANY
KEYS = {str(number): 1 for number in range(MANY)}
HELLO = [{"role": "user", "content": "hi"}]
CALL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

VALID = [
    ("chat", {"messages": HELLO, "tools": [CALL], "logit_bias": {"5": 1}, "stop": ["a", "b"]}),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    ("chat", {"messages": HELLO, "chat_template_kwargs": KEYS}),
    ("completion", {"prompt": [[1, 2], [3]], "stop_token_ids": [4]}),
    ("responses", {"input": HELLO}),
    ("messages", {"messages": HELLO, "max_tokens": 5}),
]
INVALID = [
    *(("chat", {"messages": each}) for each in (ZEROS, EMPTY, [KEYS])),
    *(("chat", {"messages": HELLO, name: ZEROS}) for name in ("bad_words", "tools", "stop")),
    ("chat", {"messages": HELLO, "logit_bias": dict.fromkeys(KEYS, "x")}),
    *(("completion", {"prompt": each}) for each in ([["a"] * MANY], [[[]]] * 100)),
    ("completion", {"prompt": "x", "allowed_token_ids": ["a"] * MANY}),
    *(("responses", {"input": each}) for each in (ZEROS, EMPTY, [KEYS], [[]] * MANY)),
    *(("messages", {"max_tokens": 5, "messages": each}) for each in (ZEROS, EMPTY, [KEYS])),
    ("messages", {"max_tokens": 5, "messages": [{"role": "user", "content": EMPTY}]}),
]


@pytest.fixture(scope="module")
def validators():
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    from server.engine.validation import read_bodies_off_loop

    models = {
        "chat": ChatCompletionRequest,
        "completion": CompletionRequest,
        "responses": ResponsesRequest,
        "messages": AnthropicMessagesRequest,
    }
    app = FastAPI()
    for name, model in models.items():

        async def answer(request):
            return request

        answer.__annotations__ = {"request": model}
        app.post(f"/{name}", response_model=None)(answer)
    read_bodies_off_loop(app, lambda _: None)
    fields = {
        route.path.strip("/"): route.dependant.body_params[0]
        for route in app.routes
        if getattr(route, "dependant", None) and route.dependant.body_params
    }
    return {name: (model, fields[name]) for name, model in models.items()}


@pytest.mark.parametrize(("kind", "body"), VALID)
def test_a_valid_body_is_read_as_before(validators, kind, body):
    model, field = validators[kind]
    body = {"model": "m", **body}
    read, errors = field.validate(body, loc=("body",))
    assert errors == []
    assert type(read) is model
    unlike = {"request_id", "id"}  # random
    assert read.model_dump(exclude=unlike) == model(**body).model_dump(exclude=unlike)


def test_an_invalid_body_yields_few_errors(validators):
    counts = {}
    for number, (kind, body) in enumerate(INVALID):
        _, field = validators[kind]
        with pytest.raises(ValidationError) as refused:
            field._type_adapter.validate_python({"model": "m", **body}, from_attributes=True)
        counts[number, kind, *body] = refused.value.error_count()
    assert {row: count for row, count in counts.items() if not 1 <= count <= 1_000} == {}

"""An invalid body yields few errors, however large it is; a valid one is read as before."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from fastapi import FastAPI
from opentelemetry.trace import INVALID_SPAN
from pydantic import ValidationError

from server.call import Call, current_call
from server.disconnects import Disconnected
from server.errors import InvalidJson

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


def test_a_token_is_decoded_once():
    from server.engine.outputs import TokenTexts

    asked = []

    def decode(tokenizer, ids):
        asked.extend(ids)
        return [f"t{each}" for each in ids]

    texts = TokenTexts(decode)
    assert texts(None, [3, 1, 3]) == ["t3", "t1", "t3"]
    assert texts(None, [1, 2]) == ["t1", "t2"]
    assert sorted(asked) == [1, 2, 3]


def test_what_a_check_of_vllm_cant_read_is_invalid(validators):
    from vllm.exceptions import VLLMValidationError

    for kind, prompt in (("completion", {"prompt": "x"}), ("chat", {"messages": HELLO})):
        _, field = validators[kind]
        body = {"model": "m", "structured_outputs": [""], **prompt}
        with pytest.raises(VLLMValidationError, match="wrong type"):
            field._type_adapter.validate_python(body, from_attributes=True)


async def post(app, body, gone=None):
    """One request to the app, in the context of the caller, as on a connection that is kept.

    `body` is encoded unless it is bytes. The caller hangs up when the event `gone` is set.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    call = Call("r", "r", "/chat", "chat", "m", INVALID_SPAN)
    token = current_call.set(call)
    sent = []
    messages = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/chat", "headers": headers}
    try:
        await app({**scope, "query_string": b"", "root_path": ""}, receive, send)
    finally:
        current_call.reset(token)
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])


@pytest.fixture(scope="module")
def counting_app():
    """An app that answers with the number of messages in a chat."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    from server.engine.validation import read_bodies_off_loop

    async def answer(request):
        return len(request.messages)

    answer.__annotations__ = {"request": ChatCompletionRequest}
    app = FastAPI()
    app.post("/chat")(answer)
    return read_bodies_off_loop(app, lambda _: None)


async def test_a_large_body_is_read_beside_the_event_loop(counting_app):
    longest, ended = 0.0, False

    async def watch():
        nonlocal longest
        while not ended:
            started = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - started)

    watching = asyncio.create_task(watch())
    started = time.monotonic()
    assert await post(counting_app, {"model": "m", "messages": HELLO * 20_000}) == (200, b"20000")
    took, ended = time.monotonic() - started, True
    await watching
    assert longest < max(took / 2, 0.1)


async def test_a_caller_that_leaves_while_its_large_body_waits_is_waited_for_no_more(counting_app):
    gone = asyncio.Event()
    async with counting_app._turns.take("another"):
        call = asyncio.create_task(post(counting_app, {"messages": HELLO * 300}, gone))
        while not counting_app._turns.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
        gone.set()
        with pytest.raises(Disconnected):
            await asyncio.wait_for(call, 1)
        assert counting_app._turns.waiting == 0


@pytest.mark.parametrize("value", ["1e", '"\\ud800"', "[" * 5_000 + "]" * 5_000, "[1,]"])
async def test_a_large_body_with_what_is_no_json_is_invalid(counting_app, value):
    body = json.dumps({"model": "m", "messages": HELLO * 300})[:-1] + f', "x": {value}}}'
    with pytest.raises(InvalidJson):
        await post(counting_app, body.encode())


async def test_numbers_that_are_slow_to_read_keep_nobody_waiting(counting_app):
    body = {"model": "m", "messages": HELLO, "x": [1e300] * 200_000}
    started = time.monotonic()
    assert await post(counting_app, body) == (200, b"1")
    assert time.monotonic() - started < 1.5


async def test_what_was_read_for_one_request_is_not_seen_by_the_next(counting_app):
    assert await post(counting_app, {"model": "m", "messages": HELLO * 300}) == (200, b"300")
    assert await post(counting_app, {"model": "m", "messages": HELLO}) == (200, b"1")
    invalid = {"model": "m", "messages": EMPTY}
    assert (await post(counting_app, invalid))[0] == 422
    assert await post(counting_app, {"model": "m", "messages": HELLO * 2}) == (200, b"2")


@pytest.mark.parametrize("value", [b'"\xff"', b"9" * 5_000])
async def test_a_large_body_that_is_no_json_where_only_vllm_reads_it_is_refused(
    counting_app, value
):
    body = b'{"model": "m", "messages": [' + b"{}," * 300 + b'{}], "x": ' + value + b"}"
    with pytest.raises(InvalidJson) as refused:
        await post(counting_app, body)
    assert refused.value.code == "invalid_json"

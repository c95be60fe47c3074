"""Checks what the server answers to a recorded request: its form, by the SDKs' own types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic.types  # vLLM needs this SDK
import httpx2
import openai.types
import openai.types.chat
import openai.types.responses
from pydantic import BaseModel, TypeAdapter

from tests.clients.recordings import Asked

Json = Any
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_RESPONSES, _MESSAGES = "/v1/responses", "/v1/messages"
_WHOLE: dict[str, type[BaseModel]] = {
    _CHAT: openai.types.chat.ChatCompletion,
    _COMPLETIONS: openai.types.Completion,
    _RESPONSES: openai.types.responses.Response,
    _MESSAGES: anthropic.types.Message,
    "/v1/messages/count_tokens": anthropic.types.MessageTokensCount,
}
_CHUNKS: dict[str, type[BaseModel]] = {
    _CHAT: openai.types.chat.ChatCompletionChunk,
    _COMPLETIONS: openai.types.Completion,
}
_EVENTS: dict[str, TypeAdapter[Any]] = {
    _RESPONSES: TypeAdapter(openai.types.responses.ResponseStreamEvent),
    _MESSAGES: TypeAdapter(anthropic.types.RawMessageStreamEvent),
}
_LAST = {_RESPONSES: {"response.completed", "response.incomplete"}, _MESSAGES: {"message_stop"}}


def check(asked: Asked, answer: httpx2.Response, model: str, digests: dict[str, str]) -> None:
    """Raises AssertionError or pydantic's ValidationError if the answer is not as it has to be.

    `model` is the version that has to answer, `digests` those of the adapters.
    """
    assert answer.status_code == asked.status, answer.text
    path = asked.path.partition("?")[0]
    if answer.status_code >= 400:
        _check_error(answer.json())
    elif path == "/v1/models":
        for each in answer.json()["data"]:
            openai.types.Model.model_validate(each)
    else:
        _check_attribution(answer, model, digests)
        if asked.body.get("stream"):
            _check_stream(path, asked.body, answer, model)
        else:
            whole = _WHOLE[path].model_validate(answer.json())
            assert getattr(whole, "model", model) == model


def _check_error(body: Json) -> None:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"


def _check_attribution(answer: httpx2.Response, model: str, digests: dict[str, str]) -> None:
    headers = answer.headers
    assert headers["x-lorry-adapter"] == model
    assert headers["x-lorry-adapter-digest"] == digests[model.partition("@")[0]]
    assert headers["x-lorry-base"]
    assert headers["x-request-id"]


def _check_stream(path: str, asked: Json, answer: httpx2.Response, model: str) -> None:
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = list(_events(answer.text))
    if path in _CHUNKS:
        _check_chunks(_CHUNKS[path], asked, events, model)
        return
    for name, data in events:
        parsed = json.loads(data)
        assert parsed["type"] == name
        _EVENTS[path].validate_python(parsed)
    assert events[-1][0] in _LAST[path]


def _check_chunks(
    kind: type[BaseModel], asked: Json, events: list[tuple[str, str]], model: str
) -> None:
    *chunks, end = (data for _, data in events)
    assert end == "[DONE]"
    parsed: list[Any] = [kind.model_validate_json(each) for each in chunks]
    assert {each.model for each in parsed} == {model}
    if (asked.get("stream_options") or {}).get("include_usage"):
        assert parsed[-1].choices == []
        assert parsed[-1].usage.completion_tokens > 0
        parsed.pop()
    assert parsed[-1].choices[0].finish_reason


def _events(text: str) -> Iterator[tuple[str, str]]:
    """(name, data) of each server-sent event."""
    for block in text.split("\n\n"):
        if block.strip():
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            assert set(fields) <= {"event", "data"}
            yield fields.get("event", ""), fields["data"]

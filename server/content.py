"""Prompts and answers as attributes of the GenAI convention, where capturing them is turned on.

They are read when the call has ended: prompts from the request's body, answers from the response.
Knows the texts and tool calls of OpenAI's and Anthropic's APIs, and skips everything else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

logger = logging.getLogger("lorry.tracing")

SWITCH = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_ON = ("true", "1", "span_only", "span_and_event")
_MAX_ANSWER_BYTES = 4 * 1024 * 1024  # a stream's events take about 200 bytes a token
_MAX_CHARACTERS = 32 * 1024  # of text in one attribute
_MAX_MESSAGES = 128  # the last ones are kept
_CUT = "..."


def is_captured(environ: Mapping[str, str]) -> bool:
    return environ.get(SWITCH, "").lower() in _ON


class Content:
    """The texts of one call: created with its body, then given its answer part by part."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._answer = bytearray()

    def add(self, part: bytes) -> None:
        if len(self._answer) < _MAX_ANSWER_BYTES:
            self._answer += part

    def attributes(self) -> dict[str, str]:
        """The texts as JSON by attribute name. Never raises: what can't be read is left out."""
        found = {}
        try:
            request = json.loads(self._body)
            found["gen_ai.system_instructions"] = _bounded_parts(_instructions(request))
            found["gen_ai.input.messages"] = _bounded(_input_messages(request))
            found["gen_ai.output.messages"] = _bounded(
                _output_messages(_documents(bytes(self._answer)))
            )
        except Exception as error:  # noqa: BLE001 - callers may send and vLLM may answer anything
            logger.debug("the texts of a call can't be read: %r", error)
        return {name: json.dumps(value) for name, value in found.items() if value}


def _instructions(request: dict[str, Any]) -> list[dict[str, Any]]:
    return _parts(request.get("system") or request.get("instructions"))


def _input_messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    messages = request.get("messages") or request.get("input") or request.get("prompt") or []
    if not isinstance(messages, list):
        messages = [messages]
    return [_message(each) for each in messages[-_MAX_MESSAGES:]]


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        return {"role": "user", "parts": _parts(message)}
    parts = _parts(message.get("content")) or _parts([message])
    if message.get("role") == "tool":
        answer = {"type": "tool_call_response", "id": message.get("tool_call_id")}
        parts = [answer | {"response": message.get("content")}]
    parts += [_tool_call(call) for call in message.get("tool_calls") or ()]
    return {"role": message.get("role", "user"), "parts": parts}


def _parts(content: Any) -> list[dict[str, Any]]:
    """Texts and tools of a message's content, which is a text or a list of blocks."""
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    return [part for block in content or () for part in _block(block)]


def _block(block: Any) -> Iterator[dict[str, Any]]:
    if isinstance(block, str):
        yield {"type": "text", "content": block}
    elif not isinstance(block, dict):
        return  # token ids
    elif isinstance(text := block.get("text"), str):
        yield {"type": "text", "content": text}
    elif block.get("type") in ("tool_use", "function_call"):
        arguments = block.get("input", block.get("arguments"))
        call = {"type": "tool_call", "id": block.get("call_id") or block.get("id")}
        yield call | {"name": block.get("name"), "arguments": arguments}
    elif block.get("type") in ("tool_result", "function_call_output"):
        answer = {
            "type": "tool_call_response",
            "id": block.get("tool_use_id", block.get("call_id")),
        }
        yield answer | {"response": block.get("content", block.get("output"))}


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {
        "type": "tool_call",
        "id": call.get("id"),
        "name": function.get("name"),
        "arguments": function.get("arguments"),
    }


def _documents(answer: bytes) -> list[Any]:
    """The JSON document of an answer, or the documents of a stream's events."""
    if not answer.startswith((b"data:", b"event:")):
        return [json.loads(answer)] if answer else []
    lines = (line[5:].strip() for line in answer.splitlines() if line.startswith(b"data:"))
    found = []
    for line in lines:
        if line.startswith(b"{"):
            try:
                found.append(json.loads(line))
            except ValueError:  # the last event, where the answer was cut off
                break
    return found


def _output_messages(documents: Iterable[Any]) -> list[dict[str, Any]]:
    messages: dict[int, dict[str, Any]] = {}

    def message(index: int) -> dict[str, Any]:
        return messages.setdefault(index, {"role": "assistant", "parts": [], "finish_reason": ""})

    for document in documents:
        for choice in document.get("choices") or ():
            _add_choice(message(choice.get("index", 0)), choice)
        _add_blocks(message, document)
    return list(messages.values())


def _add_choice(message: dict[str, Any], choice: dict[str, Any]) -> None:
    """Add a choice of OpenAI's chat or completions: a whole one, or a stream's next piece."""
    new = choice.get("message") or choice.get("delta") or choice
    text = new.get("content") if "content" in new else new.get("text")
    if text:
        _extend(message["parts"], text)
    for call in new.get("tool_calls") or ():
        if call.get("id"):
            message["parts"].append(_tool_call(call))
        elif message["parts"] and message["parts"][-1]["type"] == "tool_call":
            more = (call.get("function") or {}).get("arguments") or ""
            message["parts"][-1]["arguments"] = (message["parts"][-1]["arguments"] or "") + more
    message["finish_reason"] = choice.get("finish_reason") or message["finish_reason"]


def _add_blocks(message: Any, document: dict[str, Any]) -> None:
    """Add an answer of OpenAI's responses or Anthropic's messages: whole, or the next piece."""
    kind, delta = document.get("type"), document.get("delta")
    if kind == "response.output_text.delta":
        _extend(message(0)["parts"], str(delta))
    elif kind == "content_block_delta" and isinstance(delta, dict) and delta.get("text"):
        _extend(message(0)["parts"], delta["text"])
    elif kind == "message_delta" and isinstance(delta, dict):
        message(0)["finish_reason"] = delta.get("stop_reason") or ""
    elif kind == "message" and isinstance(document.get("content"), list):
        message(0)["parts"] += _parts(document["content"])
        message(0)["finish_reason"] = document.get("stop_reason") or ""
    elif document.get("object") == "response":
        for item in document.get("output") or ():
            message(0)["parts"] += _parts(item.get("content")) or _parts([item])
        message(0)["finish_reason"] = document.get("status") or ""


def _extend(parts: list[dict[str, Any]], text: str) -> None:
    if parts and parts[-1]["type"] == "text":
        parts[-1]["content"] += text
    else:
        parts.append({"type": "text", "content": text})


def _bounded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last messages within _MAX_CHARACTERS; the oldest of them may be cut."""
    left, kept = _MAX_CHARACTERS, []
    for message in reversed(messages):
        if left <= 0:
            break
        message["parts"] = _bounded_parts(message["parts"], left)
        left -= sum(len(_text_of(part)) for part in message["parts"])
        kept.append(message)
    return kept[::-1]


def _bounded_parts(
    parts: list[dict[str, Any]], left: int = _MAX_CHARACTERS
) -> list[dict[str, Any]]:
    kept = []
    for part in parts:
        if left <= 0:
            break
        text = _text_of(part)
        if len(text) > left:
            part = {"type": part["type"], "content": text[:left] + _CUT}
        left -= len(text)
        kept.append(part)
    return kept


def _text_of(part: dict[str, Any]) -> str:
    if part["type"] == "text":
        return str(part["content"])
    return json.dumps(part)

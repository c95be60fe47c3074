"""What is wrong with an answer: pure functions of what was sent and what came back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from tests.fuzz.drive import Answer, Outcome

_MANUAL = Path(__file__).parents[2] / "docs" / "errors.md"
_TRACEBACK = re.compile(
    rb"Traceback \(most recent|File \\?\"[^\"]+\.py\\?\", line \d+|site-packages/"
)
_ENVELOPE = {"message", "type", "param", "code"}
_TEXT = ("text/plain", "application/openmetrics-text")


# Open faults: path, beginning of the title and the fault. They are counted, and fail no run.
KNOWN = {
    # vLLM decodes the arguments of a tool call that max_tokens has cut off.
    "cut tool call in /v1/messages": re.compile(
        r"/v1/messages json .*'?tools.*\b(Expecting|Unterminated|Invalid)\b", re.DOTALL
    ),
}


def known(title: str, fault: str) -> str:
    """The open fault that this is an instance of; "" if none."""
    return next((name for name, form in KNOWN.items() if form.match(f"{title} {fault}")), "")


@cache
def documented_unavailable() -> frozenset[str]:
    """The codes that docs/errors.md lists for 503, 504 and 507, and 501."""
    rows = re.findall(r"^\| 50[1347] \| ([^|]+)\|", _MANUAL.read_text(), re.MULTILINE)
    return frozenset(code for row in rows for code in re.findall(r"`(\w+)`", row))


def faults(outcome: Outcome) -> list[str]:
    """Everything wrong with the outcome of one case."""
    case, complete = outcome.case, outcome.complete
    found = [outcome.problem] if outcome.problem else []
    if not outcome.problem and len(complete) < case.answers:
        found.append(f"{len(complete)} of {case.answers} answers came before the connection closed")
    for answer in complete:
        found += faults_of_answer(answer.status, answer.headers, answer.body)
    if case.language and not found:
        found += [fault for answer in complete for fault in _outside(case.language, answer)]
    return found


def faults_of_answer(status: int, headers: Mapping[str, str], body: bytes) -> list[str]:
    shown = body[:300].decode("utf-8", "replace")
    if found := _TRACEBACK.search(body):
        return [f"a traceback in the answer: {found.group().decode()}: {shown}"]
    if status >= 400:
        return _faults_of_error(status, body, shown)
    kind = headers.get("content-type", "").split(";")[0]
    if kind == "text/event-stream":
        return _faults_of_stream(body)
    if kind == "application/json" and _parsed(body) is None:
        return [f"{status} is not JSON: {shown}"]
    is_success = kind == "application/json" or kind in _TEXT or (status in (200, 204) and not body)
    return [] if is_success else [f"{status} with content type {kind!r}: {shown}"]


def _faults_of_error(status: int, body: bytes, shown: str) -> list[str]:
    document = _parsed(body)
    error = document.get("error") if isinstance(document, dict) else None
    if not body and status in (400, 404, 405):  # the answer to HEAD
        return []
    if not isinstance(error, dict) or set(error) != _ENVELOPE:
        return [f"{status} is not OpenAI's envelope: {shown}"]
    if not isinstance(error["message"], str) or not isinstance(error["code"], str):
        return [f"{status} has no message or code: {shown}"]
    if status >= 500 and error["code"] not in documented_unavailable():
        return [f"{status} {error['code']}: {error['message'][:200]}"]
    return []


def _faults_of_stream(body: bytes) -> list[str]:
    found = []
    for event in _events(body):
        if not isinstance(event, dict):
            found.append(f"an event of a stream is not a JSON object: {str(event)[:200]}")
            continue
        error = event.get("error") if event.get("object") != "response" else None
        if isinstance(error, dict) and error.get("code") not in documented_unavailable():
            found.append(f"a stream ends with an error: {json.dumps(error)[:300]}")
    return found


def _events(body: bytes) -> Iterator[Any]:
    for line in body.split(b"\n"):
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield _parsed(data)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def is_checked(outcome: Outcome) -> bool:
    """Whether a finished answer was there to be held against the case's language."""
    return bool(outcome.case.language) and any(
        list(_finished(_parsed(answer.body))) for answer in outcome.complete if answer.status == 200
    )


def _outside(language: dict[str, Any], answer: Answer) -> Iterator[str]:
    if answer.status == 400 and b'"context_length_exceeded"' in answer.body:
        return  # its tools are in the prompt
    if answer.status != 200:
        yield f"a valid grammar is refused: {answer.status} {answer.body[:300]!r}"
        return
    for text in _finished(_parsed(answer.body)):
        if fault := _fault_of_text(language, text):
            yield f"{fault}: {text[:200]!r} is not in {json.dumps(language)[:300]}"


def _fault_of_text(language: dict[str, Any], text: str) -> str:
    if "regex" in language:
        return "" if re.fullmatch(language["regex"], text) else "no match"
    if "choice" in language:
        return "" if text in language["choice"] else "no such choice"
    try:
        validator = jsonschema.Draft202012Validator(language["schema"])
        return next((error.message for error in validator.iter_errors(json.loads(text))), "")
    except ValueError as error:
        return f"not JSON ({error})"


def _finished(document: Any) -> Iterator[str]:
    """The texts of an answer that ended by itself; of a tool call, its arguments."""
    if isinstance(document, dict):
        for choice in document.get("choices") or ():
            yield from _finished_choice(choice)
        if document.get("object") == "response" and document.get("status") == "completed":
            for item in document.get("output") or ():
                yield from _texts_of_item(item)
        if document.get("type") == "message":
            yield from _finished_blocks(document)


def _finished_choice(choice: dict[str, Any]) -> Iterator[str]:
    message = choice.get("message") or {}
    if choice.get("finish_reason") not in ("stop", "tool_calls"):
        return
    if message.get("tool_calls"):
        yield from (call["function"]["arguments"] for call in message["tool_calls"])
    else:
        yield message.get("content") if message else choice.get("text")


def _texts_of_item(item: dict[str, Any]) -> Iterator[str]:
    yield from (part["text"] for part in item.get("content") or () if "text" in part)
    if item.get("type") == "function_call":
        yield item["arguments"]


def _finished_blocks(message: dict[str, Any]) -> Iterator[str]:
    for block in message["content"]:
        if block["type"] == "text" and message["stop_reason"] == "end_turn":
            yield block["text"]
        elif block["type"] == "tool_use" and message["stop_reason"] == "tool_use":
            yield json.dumps(block["input"])

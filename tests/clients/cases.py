"""What every client is asked to do, and when a recording shows that it worked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.clients.recordings import Case

ADAPTER = "orders-json"
ANSWERED_BY = f"{ADAPTER}@1"
PREFILL = '{"items": [{"sku"'
_CUT = {"length", "max_tokens", "incomplete"}  # finish reasons of the clients
Got = dict[str, Any]


@dataclass(frozen=True)
class Feature:
    """One row of the page. `refused` is the status and code of what the server has to refuse."""

    title: str
    holds: Callable[[Got], bool] = bool
    refused: tuple[int, str] | None = None


def _has_text(got: Got) -> bool:
    return bool(got.get("text"))


def _is_cut(got: Got) -> bool:
    return got["tokens"] == 5 and got["finish"] in _CUT


def _fits(value: Any) -> bool:
    """Whether it has the two properties of the schema that all programs use."""
    if isinstance(value, str):
        value = json.loads(value)
    return set(value) == {"city", "gift"} and isinstance(value["gift"], bool)


def _has_tool(got: Got) -> bool:
    return got["tool"]["name"] == "ship" and _fits(got["tool"]["arguments"])


def _continues(got: Got) -> bool:
    """The adapter's own answers begin with what was given to it here."""
    return _has_text(got) and not got["text"].startswith(PREFILL[:8])


FEATURES = {
    "models": Feature("list of models", lambda got: ADAPTER in got["models"]),
    "chat": Feature("answer", _has_text),
    "stream": Feature("stream", _has_text),
    "completion": Feature("text completion", _has_text),
    "limit": Feature("limit on tokens", _is_cut),
    "developer": Feature("instructions", _has_text),
    "parts": Feature("content in parts", _has_text),
    "habits": Feature("other fields it may send", _has_text),
    "schema": Feature("structured output", lambda got: _fits(got.get("parsed") or got["text"])),
    "logprobs": Feature("`logprobs`", lambda got: got["logprobs"] == [2, 2, 2]),
    "tool": Feature("named tool", _has_tool),
    "tool_stream": Feature("required tool, streamed", _has_tool),
    "tool_result": Feature("answer to a tool's result", _has_text),
    "prefill": Feature("continued answer (prefill)", _continues),
    "responses": Feature("Responses API", _has_text),
    "responses_stream": Feature("Responses API, streamed", _has_text),
    "count": Feature("count of tokens", lambda got: got["tokens"] > 0),
    "image": Feature("image", refused=(400, "invalid_request")),
    "embeddings": Feature("embeddings", refused=(404, "unknown_url")),
    "unknown_model": Feature("unknown model", refused=(404, "model_not_found")),
}


def problem(case: Case) -> str | None:
    """Why the recording of a case is not what it has to be; None if it is."""
    feature, status = FEATURES[case.name], case.requests[-1].status if case.requests else 0
    error = case.got.get("error")
    if feature.refused is not None:
        wanted, code = feature.refused
        if status != wanted or error is None:
            return f"status {status} instead of {wanted}: {case.got}"
        # Some clients tell neither, but none may tell another.
        told = (error["status"] or wanted, error["code"] or code)
        return None if told == (wanted, code) else f"the client says {told}"
    if status != 200 or error is not None:
        return f"status {status}: {case.got}"
    # In a stream LiteLLM shows the name that it asked for; the replay checks the answers' own.
    if case.got.get("model", ANSWERED_BY) not in (ANSWERED_BY, ADAPTER):
        return f"answered by {case.got['model']}"
    return None if feature.holds(case.got) else f"the client made of it: {case.got}"

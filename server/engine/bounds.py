"""Bounds on what one request may ask of the engine, checked before any of it is tokenised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest

_MAX_STOPS = 64  # compared with the answer at each token


@dataclass(frozen=True, slots=True)
class RequestBounds:
    """`sequences`: answers of one call. `context`: tokens that the model takes; `characters`: the
    longest text of that many tokens (vllm.tokenizers: max_chars_per_token)."""

    sequences: int
    context: int
    characters: int

    def check(self, request: Any) -> None:
        """Raises InvalidRequest: it asks for more."""
        self._check_sequences(request)
        stops = getattr(request, "stop", None)
        if isinstance(stops, list) and len(stops) > _MAX_STOPS:
            raise InvalidRequest(
                f"A request has at most {_MAX_STOPS} stop strings; this has {len(stops)}.",
                param="stop",
            )
        is_cut = getattr(request, "truncate_prompt_tokens", None) is not None  # by vLLM, first
        if not is_cut and sum(map(len, _texts(request))) > self.characters:
            raise InvalidRequest(
                f"The text is longer than the {self.context} tokens that the model takes.",
                code="context_length_exceeded",
            )
        tokens = getattr(request, "tokens", None)
        if isinstance(tokens, list) and len(tokens) > self.context:
            raise InvalidRequest(
                f"The model takes at most {self.context} tokens; these are {len(tokens)}.",
                code="context_length_exceeded",
                param="tokens",
            )

    def _check_sequences(self, request: Any) -> None:
        prompt = getattr(request, "prompt", None)
        is_list = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        prompts = len(prompt) if is_list and prompt is not None else 1
        sequences = prompts * (getattr(request, "n", None) or 1)
        if sequences > self.sequences:
            raise InvalidRequest(
                f"A call may ask for at most {self.sequences} answers; this asks for {sequences} "
                "(prompts by n). Send several calls, or ask the operator for a larger "
                "--max-sequences.",
                code="too_many_sequences",
                param="n",
            )


def _texts(request: Any) -> Iterator[str]:
    """The texts of one conversation or prompt; a list of prompts has a bound for each in vLLM."""
    prompt = getattr(request, "prompt", None)
    if isinstance(prompt, str):
        yield prompt
    messages = getattr(request, "messages", None) or getattr(request, "input", None) or ()
    for message in (messages,) if isinstance(messages, str) else messages:
        yield from _contents(message)


def _contents(message: Any) -> Iterator[str]:
    content = message if isinstance(message, str) else _field(message, "content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (text for part in content if isinstance(text := _field(part, "text"), str))


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)

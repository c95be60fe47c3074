"""Bounds on what one request may ask of the engine, checked before any of it is tokenised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest

# Entries of a list that costs time for each of them, on the event loop; vLLM bounds `stop`.
_MOST = {"stop_token_ids": 1024, "bad_words": 1024, "tools": 512}
_MAX_LOGPROBS = 32_768  # in one answer, which is built on the event loop: 0.2 s
_ASSUMED_TOKENS = 1024  # of an answer whose length is not limited


@dataclass(frozen=True, slots=True)
class RequestBounds:
    """`sequences`: answers of one call. `context`: tokens that the model takes; `characters`: the
    longest text of that many tokens (vllm.tokenizers: max_chars_per_token)."""

    sequences: int
    context: int
    characters: int

    def check(self, request: Any) -> None:
        """Raises InvalidRequest: it asks for more."""
        sequences = _prompts(request) * (getattr(request, "n", None) or 1)
        self._check_sequences(sequences)
        self._check_logprobs(request, sequences)
        for name, most in _MOST.items():
            given = getattr(request, name, None)
            if isinstance(given, list) and len(given) > most:
                raise InvalidRequest(
                    f"`{name}` has at most {most} entries; this has {len(given)}.", param=name
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

    def _check_sequences(self, sequences: int) -> None:
        if sequences > self.sequences:
            raise InvalidRequest(
                f"A call may ask for at most {self.sequences} answers; this asks for {sequences} "
                "(prompts by n). Send several calls, or ask the operator for a larger "
                "--max-sequences.",
                code="too_many_sequences",
                param="n",
            )

    def _check_logprobs(self, request: Any, sequences: int) -> None:
        shown = _first(request, "top_logprobs", "logprobs")
        shown = max(shown, len(getattr(request, "logprob_token_ids", None) or ()))
        of_prompt = _first(request, "prompt_logprobs")
        if getattr(request, "echo", False):
            of_prompt = max(of_prompt, shown)
        # In vLLM's order: with both, a chat goes by the first.
        tokens = _first(request, "max_completion_tokens", "max_tokens", "max_output_tokens")
        answer = 0 if getattr(request, "stream", False) else tokens or _ASSUMED_TOKENS
        found = sequences * min(answer, self.context) * (shown + 1 if shown else 0)
        found += min(_length(request), self.context * _prompts(request)) * (
            of_prompt + 1 if of_prompt else 0
        )
        if found > _MAX_LOGPROBS:
            raise InvalidRequest(
                f"An answer has at most {_MAX_LOGPROBS} logprobs; this may have {found}. Ask for "
                "fewer, limit max_tokens, or stream.",
                code="too_many_logprobs",
                param="logprobs",
            )


def _first(request: Any, *names: str) -> int:
    """The first of these fields that is a number above 0; 0 if there is none."""
    found = (getattr(request, name, None) for name in names)
    return next((each for each in found if isinstance(each, int) and each > 0), 0)


def _prompts(request: Any) -> int:
    prompt = getattr(request, "prompt", None)
    return len(prompt) if isinstance(prompt, list) and not _is_ids(prompt) else 1


def _is_ids(prompt: list[Any]) -> bool:
    return not prompt or isinstance(prompt[0], int)


def _length(request: Any) -> int:
    """The most tokens that the prompts can have: ids, or a token for each character."""
    prompt = getattr(request, "prompt", None)
    if isinstance(prompt, list) and not _is_ids(prompt):
        return sum(map(len, prompt))
    return len(prompt) if prompt is not None else sum(map(len, _texts(request)))


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

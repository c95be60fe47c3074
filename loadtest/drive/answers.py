"""Answers of the OpenAI API, whole or as a stream. Independent of HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtest.records import KEPT_TEXT

DONE = b"[DONE]"  # the data of a stream's last event


class CallFailed(Exception):
    """A call without a complete answer; `reason` is that of its record."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Message(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None  # vLLM's name; others use reasoning_content
    reasoning_content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """Part of a completion (`text`), a chat (`message`) or a streamed chat (`delta`)."""

    text: str | None = None
    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None

    @property
    def content(self) -> str:
        message = self.delta or self.message or Message()
        return self.text or message.content or ""

    @property
    def has_content(self) -> bool:
        """Reasoning counts, because it consists of tokens; a role alone does not."""
        message = self.delta or self.message or Message()
        return bool(self.content or message.reasoning or message.reasoning_content)


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, a piece of one, or an error."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    model: str | None = None
    error: Any = None

    @property
    def error_code(self) -> str:
        """At most 40 of a-z, 0-9 and _; empty without a code."""
        code = self.error.get("code") if isinstance(self.error, dict) else None
        named = "" if code is None else str(code).lower()
        return re.sub("[^a-z0-9_]+", "_", named)[:40].strip("_")


def parse(data: bytes) -> Answer:
    """Raises CallFailed (bad_answer): it is not JSON or not an OpenAI answer."""
    try:
        return msgspec.json.decode(data, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CallFailed("bad_answer") from None


@dataclass
class Received:
    """The received part of an answer."""

    first: float | None = None  # first piece with content; seconds, monotonic
    last: float | None = None
    gaps: list[float] = field(default_factory=list)
    pieces: int = 0  # with content
    text: str = ""
    answered: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    has_choices: bool = False
    is_finished: bool = False  # some piece had a finish_reason
    is_done: bool = False  # the stream sent [DONE]

    def take_whole(self, body: bytes, now: float) -> None:
        """Raises CallFailed (bad_answer)."""
        self._take(parse(body))
        if not self.has_choices:
            raise CallFailed("bad_answer")
        self.first = self.last = now

    def take_event(self, data: bytes, now: float) -> None:
        """Raises CallFailed (bad_answer, stream_error_...)."""
        if data.strip() == DONE:
            self.is_done = True
            return
        answer = parse(data)
        if answer.error is not None:
            raise CallFailed(join("stream_error", answer.error_code))
        self._take(answer)
        if any(choice.has_content for choice in answer.choices or ()):
            self._mark(now)

    def check_ended(self) -> None:
        """Raises CallFailed: the stream closed before its end."""
        if not (self.is_done or self.is_finished):
            raise CallFailed("stream_broken")
        if not self.has_choices:
            raise CallFailed("bad_answer")

    def _take(self, answer: Answer) -> None:
        self.answered = answer.model or self.answered
        if answer.usage is not None:
            self.prompt_tokens = answer.usage.prompt_tokens or 0
            self.output_tokens = answer.usage.completion_tokens or 0
        for choice in answer.choices or ():
            self.has_choices = True
            self.is_finished |= choice.finish_reason is not None
            self.text = (self.text + choice.content)[:KEPT_TEXT]

    def _mark(self, now: float) -> None:
        if self.last is not None:
            self.gaps.append(now - self.last)
        self.first = now if self.first is None else self.first
        self.last = now
        self.pieces += 1


def join(*parts: str) -> str:
    """A reason from its non-empty parts."""
    return "_".join(part for part in parts if part)

"""One case: the steps of a caller on one connection, and what must come of it.

A case is a pure function of seed, kind and number. Its JSON has every byte that is sent, so that a
kept case stays the same when the generators change.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["send", "drip", "pause", "answers", "read", "sip", "close", "reset"]


@dataclass(frozen=True)
class Step:
    """`data` is sent; `amount` is seconds, bytes or a number of answers, as the action says.

    send     all of `data`
    drip     one byte of `data` after the other, `amount` seconds apart
    pause    for `amount` seconds
    answers  read until `amount` answers are complete, or the server closes
    read     `amount` bytes at least, or one answer
    sip      64 bytes every 50 ms, for `amount` seconds
    close    the caller's side, in order; reset: at once, with what is unread
    """

    action: Action
    data: bytes = b""
    amount: float = 0.0


@dataclass(frozen=True)
class Case:
    """`answers`: how many complete ones must come; `language`: what finished ones must be in."""

    seed: int
    kind: str
    number: int
    title: str
    steps: tuple[Step, ...]
    answers: int = 1
    language: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.number}"

    def to_json(self) -> str:
        steps = [[s.action, base64.b64encode(s.data).decode(), s.amount] for s in self.steps]
        return json.dumps({**self.__dict__, "steps": steps}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Case:
        document = json.loads(text)
        steps = (Step(a, base64.b64decode(data), amount) for a, data, amount in document["steps"])
        return cls(**{**document, "steps": tuple(steps)})


def randomness(seed: int, kind: str, number: int) -> random.Random:
    return random.Random(f"{seed}:{kind}:{number}")


def sizes(rng: random.Random, most: float) -> int:
    """Small numbers and large ones equally often, up to `most`."""
    return int(most ** rng.random())


def request(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """An HTTP request as it goes over the wire."""
    fields = {"host": "fuzz", "content-type": "application/json"} | (headers or {})
    fields.setdefault("content-length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def numbers(start: int = 0) -> Iterator[int]:
    while True:
        yield start
        start += 1

"""A workload: requests of one length, sent at once, their adapters in turn.

A workload and a seed give the same requests in every process. Knows no engine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

BASE = None
# Enough to compile, load adapters and allocate: no shape depends on the answer's length.
_WARM_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Request:
    prompt: list[int]
    adapter: str | None


@dataclass(frozen=True, slots=True)
class Workload:
    streams: int = 24
    prompt_tokens: int = 128
    output_tokens: int = 32
    adapters: tuple[str | None, ...] = (BASE,)

    def requests(self, vocabulary: int, seed: int) -> list[Request]:
        """Every prompt differs, so that no request can reuse the cache of another."""
        rng = random.Random(f"{seed} {self.streams} {self.prompt_tokens}")
        return [
            Request(
                prompt=rng.choices(range(vocabulary), k=self.prompt_tokens),
                adapter=self.adapters[number % len(self.adapters)],
            )
            for number in range(self.streams)
        ]

    def warm_up(self) -> Workload:
        return replace(self, output_tokens=min(self.output_tokens, _WARM_TOKENS))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Workload:
        return cls(**{**fields, "adapters": tuple(fields["adapters"])})


def sum_names(count: int) -> tuple[str, ...]:
    """The names, and folder names, of the bench's sums: each of two adapters of rank 8."""
    return tuple(f"s16-{number:02d}" for number in range(count))


def adapter_names(rank: int, count: int) -> tuple[str, ...]:
    """The names, and folder names, of the bench's adapters of one rank."""
    return tuple(f"r{rank}-{number:02d}" for number in range(count))

"""Seeded calls: when they arrive, which adapter they name, how long their answers are."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from cluster.simulation.replica import Call

TOKENS: Final = 32  # of an answer, on average: the bench's


@dataclass(frozen=True, slots=True)
class Traffic:
    """Poisson arrivals, popularity by Zipf's law, exponential lengths.

    From `surge_at` on, `surge_share` of the calls name one adapter that was cold until then.
    """

    seed: int
    calls_per_second: float
    adapters: int = 10_000
    exponent: float = 1.0  # as in the load test's power-law-1000
    base_share: float = 0.1
    surge_at: float = float("inf")
    surge_share: float = 0.1

    def calls(self, seconds: float) -> Iterator[Call]:
        """In order of arrival, the same for each way to place them."""
        draw = random.Random(self.seed)
        popularity = list(accumulate(rank**-self.exponent for rank in range(1, self.adapters + 1)))
        at = draw.expovariate(self.calls_per_second)
        while at < seconds:
            yield Call(at, self._adapter(at, popularity, draw), draw.expovariate(1 / TOKENS))
            at += draw.expovariate(self.calls_per_second)

    def _adapter(self, at: float, popularity: list[float], draw: random.Random) -> str | None:
        kind, rank = draw.random(), bisect(popularity, draw.random() * popularity[-1])
        if kind < self.base_share:
            return None
        if at >= self.surge_at and kind >= 1 - self.surge_share:
            rank = self.adapters - 1
        return f"adapter-{min(rank, self.adapters - 1):05}"

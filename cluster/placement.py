"""Which replica answers a call: of those that have room, the one that the call's adapter prefers.

Preference is rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit
rates", 1998), weighted by capacity with logarithms (Schindelhauer and Schomaker, "Weighted
distributed hash tables", 2005). Room is that of bounded loads (Mirrokni, Thorup and Zadimoghaddam,
"Consistent hashing with bounded loads", 2016, arXiv 1608.01350), and half of a replica's capacity
in any case.

Nothing is stored. The replicas of an adapter are the first of its order, as many as its load fills:
they grow and shrink with the load. A replica that the load has left keeps the adapter until another
one needs its place, so load that comes back finds it there.

Adapters go by their names, without version: an alias that moves leaves the traffic where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

BOUND: Final = 1.25  # of the mean load; decision 18 has what others give
ALWAYS_FREE: Final = 0.5  # of the capacity: below it a replica takes calls, whatever the mean is
_REMEMBERED: Final = 4096  # adapters; 3 KiB each with 100 replicas


class Replica(Protocol):
    """What placement knows of a replica. Leave out those that can't take calls."""

    @property
    def name(self) -> str:
        """The same after a restart: another name has another place in every adapter's order."""

    @property
    def in_flight(self) -> int:
        """Calls that were sent to it and have not ended, those that wait there too."""

    @property
    def capacity(self) -> float:
        """Calls that it works on at once (`--max-num-seqs`), above 0."""


R = TypeVar("R", bound=Replica)


def choose(adapter: str | None, replicas: Sequence[R], bound: float = BOUND) -> R:
    """The replica for one more call of `adapter`, or of the base (None). Deterministic.

    One has room however many calls there are: the bounds add up to more than these. Where a replica
    failed, choose again without it; the call goes on to the next of its adapter's order.

    Raises ValueError without replicas, and for a bound below 1.
    """
    if not replicas:
        raise ValueError("there is no replica to choose")
    if adapter is None:
        return min(replicas, key=lambda each: (each.in_flight / each.capacity, each.name))
    limit = load_limit(replicas, bound)
    weights = _weights(adapter, tuple([each.name for each in replicas]))
    with_room = [
        (each.capacity * weight, each.name, at)
        for at, (each, weight) in enumerate(zip(replicas, weights, strict=True))
        if each.in_flight < limit * each.capacity
    ]
    return replicas[max(with_room)[-1]]


def load_limit(replicas: Sequence[Replica], bound: float = BOUND) -> float:
    """Calls in flight for each unit of capacity at which a replica has no room for another one."""
    if not bound >= 1:
        raise ValueError(f"a bound of {bound} leaves calls without a replica: it is 1 or more")
    calls = 1 + sum([each.in_flight for each in replicas])
    return max(ALWAYS_FREE, bound * calls / sum([each.capacity for each in replicas]))


@lru_cache(_REMEMBERED)
def _weights(adapter: str, replicas: tuple[str, ...]) -> tuple[float, ...]:
    """How much the adapter prefers each replica, for each unit of its capacity."""
    return tuple([_weight(f"{adapter}\0{replica}") for replica in replicas])


def _weight(pair: str) -> float:
    digest = blake2b(pair.encode(errors="surrogatepass"), digest_size=8).digest()
    # 52 bits and a half, so that it is neither 0 nor 1.
    uniform = ((int.from_bytes(digest) >> 12) + 0.5) / 2**52
    return -1 / math.log(uniform)

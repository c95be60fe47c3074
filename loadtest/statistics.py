"""Percentiles, latencies, fairness, and ratios of paired rounds.

Percentiles are by nearest rank: the smallest value that at least that share of the values does not
exceed. So each one is a measured value, and with fewer than 100 values p99 is the maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, fsum
from statistics import median

import msgspec


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds, from `count` values."""

    p50: float
    p90: float
    p99: float
    p999: float
    mean: float
    count: int


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio over rounds; `low` and `high` are those of single rounds."""

    median: float
    low: float
    high: float
    rounds: int


def percentile(ordered: Sequence[float], share: float) -> float:
    """Percentile of at least one value in ascending order, by nearest rank."""
    rank = ceil(share * len(ordered) - 1e-9)  # 0.999 * 3000 must be 2997, not a hair more
    return ordered[max(rank, 1) - 1]


def latency_of(seconds: Iterable[float]) -> Latency | None:
    """None without values."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    return Latency(
        p50=1000 * percentile(ordered, 0.5),
        p90=1000 * percentile(ordered, 0.9),
        p99=1000 * percentile(ordered, 0.99),
        p999=1000 * percentile(ordered, 0.999),
        mean=1000 * fsum(ordered) / len(ordered),
        count=len(ordered),
    )


def jain_of(shares: Sequence[float]) -> float | None:
    """Jain's index, (sum x)^2 / (n sum x^2): 1 when all are equal, 1/n when one has everything.

    None for fewer than two shares, or when all are zero.
    Source: Jain, Chiu and Hawe, DEC-TR-301, 1984.
    """
    squares = fsum(share * share for share in shares)
    if len(shares) < 2 or squares == 0:
        return None
    return fsum(shares) ** 2 / (len(shares) * squares)


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The median of the rounds' ratios (first over second), and their range.

    The range, not a bootstrap: from three to seven values a bootstrap only redraws these values,
    and its interval is too narrow. The range of n rounds holds the true median with a probability
    of 1 - 2^(1-n): 75 % for 3 rounds, 94 % for 5, 98 % for 7.

    Raises:
        ValueError: there are no rounds, or a second figure is not above zero.
    """
    if not pairs or any(under <= 0 for _, under in pairs):
        raise ValueError("a ratio needs rounds, and figures above zero to divide by")
    ratios = sorted(over / under for over, under in pairs)
    return Ratio(median=median(ratios), low=ratios[0], high=ratios[-1], rounds=len(ratios))

"""Plain records of what was measured, row by row, and the ratio of two sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from bench.rows import Row


@dataclass(frozen=True, slots=True)
class Spread:
    """A ratio over the rounds."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Result:
    """A row's outcome; `over` and `under` are medians: tokens/s or requests by its kind."""

    row: Row
    over: float | None = None
    under: float | None = None
    ratio: Spread | None = None
    rounds: int = 0
    note: str = ""
    failure: str = ""

    @property
    def reached(self) -> bool | None:
        """None: the row has no goal or could not be measured."""
        if self.row.goal is None or self.ratio is None:
            return None
        return self.ratio.median >= self.row.goal


def compare(row: Row, over: Mapping[int, float], under: Mapping[int, float]) -> Result:
    """Compare two sides' figures, by round; each round gives one ratio."""
    rounds = sorted(over.keys() & under.keys())
    if not rounds:
        return Result(row, failure="no round was measured on both sides")
    ratios = [over[number] / under[number] for number in rounds]
    return Result(
        row,
        over=median(over[number] for number in rounds),
        under=median(under[number] for number in rounds),
        ratio=Spread(median(ratios), min(ratios), max(ratios)),
        rounds=len(rounds),
    )

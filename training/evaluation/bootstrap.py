"""Confidence intervals of a mean and of a paired difference, by the percentile bootstrap.

Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13. Both sides of a difference answer
the same examples, so whole examples are resampled: what makes an example hard cancels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np

RESAMPLES: Final = 10_000
CONFIDENCE: Final = 0.95
MOST_DRAWS: Final = 1 << 22  # at once, to bound memory


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of n scores, and where the mean of all such examples lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of a - b over the same examples; it exceeds noise if its interval excludes 0."""

    mean: float
    low: float
    high: float
    exceeds_noise: bool


def score_interval(scores: Sequence[float], *, seed: int = 0) -> Interval:
    """The 95 % interval of the mean of scores in [0, 1]; raises ValueError for none."""
    mean, low, high = _interval(scores, 0.0, 1.0, seed)
    return Interval(mean, low, high, len(scores))


def paired_difference(one: Sequence[float], other: Sequence[float], *, seed: int = 0) -> Difference:
    """The 95 % interval of the mean of one - other, scores in [0, 1] of the same examples."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean, low, high = _interval(differences, -1.0, 1.0, seed)
    return Difference(mean, low, high, low > 0 or high < 0)


def _interval(
    values: Sequence[float], least: float, most: float, seed: int
) -> tuple[float, float, float]:
    import numpy as np

    if not values:
        raise ValueError("no scores")
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if np.all(found == found[0]):
        return mean, *_around_equal(float(found[0]), len(found), least, most)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(_resampled_means(found, seed), (tail, 1 - tail))
    return mean, float(low), float(high)


def _around_equal(value: float, n: int, least: float, most: float) -> tuple[float, float]:
    """The interval where all n values are equal, of which the bootstrap would say that it has no
    width. Of scores that are all 0 or all 1 it is the exact one (Clopper & Pearson 1934): the share
    of examples that score otherwise may be as large as `unseen`. For n = 1 it is nearly all.
    """
    unseen = 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)
    return value - unseen * (value - least), value + unseen * (most - value)


def _resampled_means(
    values: "np.ndarray[tuple[int], np.dtype[np.float64]]", seed: int
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    import numpy as np

    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.empty(RESAMPLES)
    step = max(1, MOST_DRAWS // n)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = values[rng.integers(0, n, size=(rows, n))]
        means[start : start + rows] = drawn.mean(axis=1)
    return means

"""Which of its adapters a call of a stream asks."""

from __future__ import annotations

import random
from bisect import bisect
from functools import lru_cache
from itertools import accumulate
from typing import assert_never

from loadtest.plan.traffic import Evenly, HotSet, InTurn, Popularity, PowerLaw, Zipf


def choose(popularity: Popularity, count: int, number: int, dice: random.Random) -> int:
    """The adapter, 0 to `count` - 1, of the stream's `number`-th call.

    Low numbers are the popular ones with zipf, and with power-law while alpha is below 1; alpha 1
    is uniform, and above it high numbers are.
    """
    match popularity:
        case Evenly():
            return dice.randrange(count)
        case PowerLaw():
            return _draw_power_law(popularity.alpha, count, dice)
        case Zipf():
            return _draw_zipf(popularity.exponent, count, dice)
        case HotSet():
            return _draw_hot_set(popularity, count, number, dice)
        case InTurn():
            return number % count
        case _:
            assert_never(popularity)


def _draw_power_law(alpha: float, count: int, dice: random.Random) -> int:
    """S-LoRA's floor(numpy.random.power(alpha) * n); u^(1/alpha) has numpy's distribution."""
    # The root of a number just below 1 can be rounded to 1.
    return min(int(dice.random() ** (1 / alpha) * count), count - 1)


def _draw_zipf(exponent: float, count: int, dice: random.Random) -> int:
    weights = _cumulative_weights(exponent, count)
    return bisect(weights, dice.random() * weights[-1], hi=count - 1)


@lru_cache(maxsize=16)
def _cumulative_weights(exponent: float, count: int) -> list[float]:
    return list(accumulate(rank**-exponent for rank in range(1, count + 1)))


def _draw_hot_set(popularity: HotSet, count: int, number: int, dice: random.Random) -> int:
    start = number // popularity.every if popularity.every else 0
    hot = min(popularity.hot, count)
    if dice.random() < popularity.share or hot == count:
        return (start + dice.randrange(hot)) % count
    return (start + dice.randrange(hot, count)) % count

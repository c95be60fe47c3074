"""Seeded draws: when calls arrive, how long they are, which adapter each one asks for."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate, count, islice, takewhile
from typing import assert_never

from loadtest.plan.traffic import (
    Evenly,
    Gamma,
    HotSet,
    InTurn,
    Length,
    LogNormal,
    Poisson,
    Popularity,
    PowerLaw,
    Ramp,
    Steady,
    Steps,
    Uniform,
    Zipf,
)

Timed = Poisson | Gamma | Steady | Ramp | Steps
MOST_CALLS = 1_000_000  # of one phase; a plan is held in memory


def arrival_times(arrival: Timed, seconds: float, dice: random.Random) -> list[float]:
    """Seconds into the phase, ascending, all below `seconds`.

    Ends after MOST_CALLS + 1 of them, so that asking for too many is noticed before memory is full.
    """
    endless = _endless(arrival, seconds, dice)
    return list(islice(takewhile(lambda at: at < seconds, endless), MOST_CALLS + 1))


def _endless(arrival: Timed, seconds: float, dice: random.Random) -> Iterator[float]:
    match arrival:
        case Poisson():
            return _poisson(arrival.rate, dice)
        case Gamma():
            return _gamma(arrival, dice)
        case Steady():
            return (number / arrival.rate for number in count())
        case Ramp():
            return _ramp(arrival, seconds, dice)
        case Steps():
            return _steps(arrival.rates, seconds / len(arrival.rates), dice)
        case _:
            assert_never(arrival)


def _poisson(rate: float, dice: random.Random) -> Iterator[float]:
    return _sums(lambda: dice.expovariate(rate))


def _gamma(arrival: Gamma, dice: random.Random) -> Iterator[float]:
    """As in S-LoRA (benchmarks/trace.py): the mean gap is 1/rate, its deviation cv/rate."""
    shape = 1 / arrival.cv**2
    scale = arrival.cv**2 / arrival.rate
    return _sums(lambda: dice.gammavariate(shape, scale))


def _sums(gap: Callable[[], float]) -> Iterator[float]:
    at = 0.0
    while True:
        at += gap()
        yield at


def _ramp(arrival: Ramp, seconds: float, dice: random.Random) -> Iterator[float]:
    """Thinning (Lewis and Shedler): of a Poisson process at the peak, the share due is kept."""
    peak = max(arrival.start, arrival.end)
    slope = (arrival.end - arrival.start) / seconds
    for at in _poisson(peak, dice):
        # Past the end the rate may be nothing; what comes there is let through to end the phase.
        if at >= seconds or dice.random() * peak < arrival.start + slope * at:
            yield at


def _steps(rates: list[float], width: float, dice: random.Random) -> Iterator[float]:
    for step, rate in enumerate(rates):
        within = takewhile(lambda at: at < width, _poisson(rate, dice))
        yield from (step * width + at for at in within)


def draw_length(length: Length, dice: random.Random) -> int:
    """At least 1, at most the length's `most`; both ends of `uniform` are included."""
    match length:
        case int():
            return length
        case Uniform():
            return dice.randint(length.least, length.most)
        case LogNormal():
            return _draw_lognormal(length, dice)
        case _:
            assert_never(length)


def _draw_lognormal(length: LogNormal, dice: random.Random) -> int:
    logarithm = dice.normalvariate(math.log(length.median), length.sigma)
    # Cut off before exp, which fails on what is too large for a float.
    tokens = round(math.exp(min(logarithm, math.log(length.most))))
    return min(max(tokens, 1), length.most)


def choose_adapter(popularity: Popularity, count: int, number: int, dice: random.Random) -> int:
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

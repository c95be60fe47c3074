"""Seeded draws: when calls arrive, how long they are, which adapter each requests."""

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
MOST_CALLS = 1_000_000  # of one phase: a plan is kept in memory


def arrival_times(arrival: Timed, seconds: float, rng: random.Random) -> list[float]:
    """Seconds into the phase, ascending, all below `seconds`.

    Ends after MOST_CALLS + 1 values: the caller detects an excess before memory is full.
    """
    endless = _endless(arrival, seconds, rng)
    return list(islice(takewhile(lambda at: at < seconds, endless), MOST_CALLS + 1))


def _endless(arrival: Timed, seconds: float, rng: random.Random) -> Iterator[float]:
    match arrival:
        case Poisson():
            return _poisson(arrival.rate, rng)
        case Gamma():
            return _gamma(arrival, rng)
        case Steady():
            return (number / arrival.rate for number in count())
        case Ramp():
            return _ramp(arrival, seconds, rng)
        case Steps():
            return _steps(arrival.rates, seconds / len(arrival.rates), rng)
        case _:
            assert_never(arrival)


def _poisson(rate: float, rng: random.Random) -> Iterator[float]:
    return _sums(lambda: rng.expovariate(rate))


def _gamma(arrival: Gamma, rng: random.Random) -> Iterator[float]:
    """As in S-LoRA (benchmarks/trace.py): the mean gap is 1/rate, its deviation cv/rate."""
    shape = 1 / arrival.cv**2
    scale = arrival.cv**2 / arrival.rate
    return _sums(lambda: rng.gammavariate(shape, scale))


def _sums(gap: Callable[[], float]) -> Iterator[float]:
    at = 0.0
    while True:
        at += gap()
        yield at


def _ramp(arrival: Ramp, seconds: float, rng: random.Random) -> Iterator[float]:
    """Thinning (Lewis and Shedler): keeps the due share of a Poisson process at the peak rate."""
    peak = max(arrival.start, arrival.end)
    slope = (arrival.end - arrival.start) / seconds
    for at in _poisson(peak, rng):
        # Past the end the rate may be zero: pass every arrival there, which ends the phase.
        if at >= seconds or rng.random() * peak < arrival.start + slope * at:
            yield at


def _steps(rates: list[float], width: float, rng: random.Random) -> Iterator[float]:
    for step, rate in enumerate(rates):
        within = takewhile(lambda at: at < width, _poisson(rate, rng))
        yield from (step * width + at for at in within)


def draw_length(length: Length, rng: random.Random) -> int:
    """Tokens, from 1 to the length's `most`; `uniform` includes both ends."""
    match length:
        case int():
            return length
        case Uniform():
            return rng.randint(length.least, length.most)
        case LogNormal():
            return _draw_lognormal(length, rng)
        case _:
            assert_never(length)


def _draw_lognormal(length: LogNormal, rng: random.Random) -> int:
    logarithm = rng.normalvariate(math.log(length.median), length.sigma)
    # Bounded before exp, which fails beyond the range of a float.
    tokens = round(math.exp(min(logarithm, math.log(length.most))))
    return min(max(tokens, 1), length.most)


def choose_adapter(popularity: Popularity, count: int, number: int, rng: random.Random) -> int:
    """Index of the adapter, 0 to `count` - 1, of the stream's `number`-th call.

    Low indices are popular with zipf and with power-law below alpha 1; alpha 1 is uniform, and
    above it high indices are popular.
    """
    match popularity:
        case Evenly():
            return rng.randrange(count)
        case PowerLaw():
            return _draw_power_law(popularity.alpha, count, rng)
        case Zipf():
            return _draw_zipf(popularity.exponent, count, rng)
        case HotSet():
            return _draw_hot_set(popularity, count, number, rng)
        case InTurn():
            return number % count
        case _:
            assert_never(popularity)


def _draw_power_law(alpha: float, count: int, rng: random.Random) -> int:
    """S-LoRA's floor(numpy.random.power(alpha) * n); u^(1/alpha) has numpy's distribution."""
    # The root of a number just below 1 may round to 1.
    return min(int(rng.random() ** (1 / alpha) * count), count - 1)


def _draw_zipf(exponent: float, count: int, rng: random.Random) -> int:
    weights = _cumulative_weights(exponent, count)
    return bisect(weights, rng.random() * weights[-1], hi=count - 1)


@lru_cache(maxsize=16)
def _cumulative_weights(exponent: float, count: int) -> list[float]:
    return list(accumulate(rank**-exponent for rank in range(1, count + 1)))


def _draw_hot_set(popularity: HotSet, count: int, number: int, rng: random.Random) -> int:
    start = number // popularity.every if popularity.every else 0
    hot = min(popularity.hot, count)
    if rng.random() < popularity.share or hot == count:
        return (start + rng.randrange(hot)) % count
    return (start + rng.randrange(hot, count)) % count

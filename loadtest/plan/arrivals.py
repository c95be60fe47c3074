"""When the calls of an open loop come: at times drawn beforehand, whatever the server does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count, islice, takewhile
from typing import assert_never

from loadtest.plan.traffic import Gamma, Poisson, Ramp, Steady, Steps

Timed = Poisson | Gamma | Steady | Ramp | Steps
MOST_CALLS = 1_000_000  # of one phase; a plan is held in memory


def times(arrival: Timed, seconds: float, dice: random.Random) -> list[float]:
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

"""How much a server carries: the same traffic at rising rates, and where it stops keeping up.

A sweep is a scenario like any other, with one phase for each rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from loadtest.errors import OptionsClash
from loadtest.scenario import Phase, Scenario
from loadtest.summary import Summary, metric_of
from loadtest.traffic import Closed, Poisson

# Of what a closed loop got: below, around and above what the server carries.
SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.15)
_KEEPS_UP = 0.95  # of the calls asked for are answered as they come
_CALM = 5.0  # times the p99 TTFT of the lowest rate
_CAPACITY = "capacity"
_WARM_UP = Phase(
    name="warm-up", seconds=5, measured=False, traffic={"x": Closed(kind="closed", concurrency=8)}
)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One rate of a sweep."""

    offered: float  # calls per second
    reached: float  # calls answered per second
    tokens: float  # output tokens per second
    ttft_p99_ms: float | None
    failed: int


def measuring_capacity(scenario: Scenario, stream: str, seconds: float, callers: int) -> Scenario:
    """The scenario that tells how much a server can answer at most."""
    closed = Closed(kind="closed", concurrency=callers)
    return _with_phases(
        scenario,
        _WARM_UP.model_copy(update={"traffic": {stream: closed}}),
        Phase(name=_CAPACITY, seconds=seconds, traffic={stream: closed}),
    )


def rates_of(capacity: Summary) -> list[float]:
    """Rates to try, from what the closed loop got.

    Raises:
        OptionsClash: it got nothing.
    """
    most = metric_of(capacity, "requests_per_second", _CAPACITY, None)
    if not most:
        raise OptionsClash("no call was answered, so no rates can be chosen: give --rates")
    return [round(most * share, 2) for share in SHARES]


def sweeping(scenario: Scenario, stream: str, rates: Sequence[float], seconds: float) -> Scenario:
    """The scenario with a phase for each rate, lowest first."""
    first = Poisson(kind="poisson", rate=min(rates))
    return _with_phases(
        scenario,
        _WARM_UP.model_copy(update={"traffic": {stream: first}}),
        *(
            Phase(
                name=_phase(number),
                seconds=seconds,
                traffic={stream: Poisson(kind="poisson", rate=rate)},
            )
            for number, rate in enumerate(sorted(rates))
        ),
    )


def points_of(summary: Summary, rates: Sequence[float]) -> list[Point]:
    def value(metric: Any, number: int) -> float:
        return metric_of(summary, metric, _phase(number), None) or 0.0

    return [
        Point(
            offered=rate,
            reached=value("requests_per_second", number),
            tokens=value("output_tokens_per_second", number),
            ttft_p99_ms=metric_of(summary, "ttft_p99_ms", _phase(number), None),
            failed=int(value("failed", number)),
        )
        for number, rate in enumerate(sorted(rates))
    ]


def knee_of(points: Sequence[Point]) -> int | None:
    """The last rate up to which all is answered as it comes and the first token stays quick."""
    calm = next((p.ttft_p99_ms for p in points if p.ttft_p99_ms), None)
    knee = None
    for number, point in enumerate(points):
        is_quick = calm is not None and (point.ttft_p99_ms or float("inf")) <= _CALM * calm
        if point.failed or point.reached < _KEEPS_UP * point.offered or not is_quick:
            break
        knee = number
    return knee


def _phase(number: int) -> str:
    return f"rate-{number + 1:02}"


def _with_phases(scenario: Scenario, *phases: Phase) -> Scenario:
    return scenario.model_copy(update={"phases": list(phases), "expect": (), "compare": ()})

"""How much a server carries: the same traffic at rising rates, and where it stops keeping up.

A sweep is a scenario like any other, with one phase for each rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from loadtest.errors import OptionsClash
from loadtest.judge.summary import Summary, metric_of
from loadtest.plan.scenario import Phase, Scenario
from loadtest.plan.traffic import Closed, Poisson
from loadtest.records import Record
from loadtest.results import Run, Window

# Of what a closed loop got: below, around and above what the server carries. Its callers wait for
# each other's steps, so an open loop, with more in flight, may get well beyond it.
SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.45, 1.75)
_LATE_SHARE = 0.05  # of the calls, or _LATE_FEW of them, may be late where a server keeps up
_LATE_FEW = 2
_LONGEST = 0.25  # of a phase: so long after its end an answer may still come in time
_CALM = 5.0  # times the p99 TTFT of the lowest rate
_CAPACITY = "capacity"
_CALLERS = 24  # of the closed loop that tells what a server can do at most
_WARM_UP = Phase(
    name="warm-up", seconds=5, measured=False, traffic={"x": Closed(kind="closed", concurrency=8)}
)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One rate of a sweep."""

    offered: float  # calls per second, on average: chance makes them more or fewer
    calls: int
    late: int  # those of them that had not ended when they should have (see points_of)
    reached: float  # calls that ended in time, per second
    tokens: float  # output tokens per second
    ttft_p99_ms: float | None
    failed: int


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """Rising rates against one server; `knee` is the number of a point."""

    scenario: str
    stream: str
    target: str
    date: str
    plan: str
    points: list[Point]
    knee: int | None
    wrong: int  # answers of another adapter
    apart: int  # counts that client and server do not share

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.apart


def measuring_capacity(scenario: Scenario, stream: str, seconds: float) -> Scenario:
    """The scenario that tells how much a server can answer at most."""
    closed = Closed(kind="closed", concurrency=_CALLERS)
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


def points_of(run: Run, summary: Summary, rates: Sequence[float]) -> list[Point]:
    """What came of each rate.

    The last calls of a phase end after it, however quick the server is: a call is in time until as
    long after the phase's end as its calls lasted on average, but no longer than _LONGEST of it.
    """
    windows = {window.phase: window for window in run.windows}
    late = Counter(r.phase for r in run.records if _is_late(r, windows[r.phase], summary))
    points = []
    for number, rate in enumerate(sorted(rates)):
        phase = _phase(number)
        stats = summary.phases[phase]
        points.append(
            Point(
                offered=rate,
                calls=stats.requests,
                late=late[phase],
                reached=(stats.requests - late[phase]) / stats.seconds,
                tokens=stats.output_tokens_per_second or 0.0,
                ttft_p99_ms=None if stats.ttft is None else stats.ttft.p99,
                failed=stats.failed,
            )
        )
    return points


def _is_late(record: Record, window: Window, summary: Summary) -> bool:
    """A call that failed always is."""
    e2e = summary.phases[window.phase].e2e
    grace = min(e2e.mean / 1000 if e2e else 0.0, _LONGEST * window.seconds)
    return record.outcome == "failed" or record.ended > window.began + window.seconds + grace


def knee_of(points: Sequence[Point]) -> int | None:
    """The last rate up to which all is answered as it comes and the first token stays quick."""
    calm = next((p.ttft_p99_ms for p in points if p.ttft_p99_ms), None)
    knee = None
    for number, point in enumerate(points):
        is_quick = calm is not None and (point.ttft_p99_ms or float("inf")) <= _CALM * calm
        keeps_up = point.late <= max(_LATE_SHARE * point.calls, _LATE_FEW)
        if point.failed or not keeps_up or not is_quick:
            break
        knee = number
    return knee


def _phase(number: int) -> str:
    return f"rate-{number + 1:02}"


def _with_phases(scenario: Scenario, *phases: Phase) -> Scenario:
    return scenario.model_copy(update={"phases": list(phases), "expect": (), "compare": ()})

"""The results of a sweep: a point for each rate, and the last rate the server keeps up with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from loadtest.judge.summary import Summary
from loadtest.records import Record, Run, Window

_LATE_SHARE = 0.05  # share of the calls that may be late where the server keeps up,
_LATE_FEW = 2  # or so many of them
_LONGEST = 0.25  # of a phase: the latest that an answer is in time after the phase's end
_CALM = 5.0  # times the p99 TTFT of the lowest rate


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One rate of a sweep."""

    offered: float  # mean calls per second of the Poisson arrivals
    calls: int
    late: int  # calls that ended too late (see points_of)
    reached: float  # calls in time, per second
    tokens: float  # output tokens per second
    ttft_p99_ms: float | None
    failed: int


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """Rising rates against one server; `knee` is the index of a point."""

    scenario: str
    stream: str
    target: str
    date: str
    plan: str
    points: list[Point]
    knee: int | None
    wrong: int  # answers from another adapter
    apart: int  # counts on which client and server differ

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.apart


def points_of(run: Run, summary: Summary, rates: Sequence[float]) -> list[Point]:
    """The point of each rate, from its phase.

    The last calls of a phase always end after it. So a call is in time if it ends within the mean
    call duration after the phase's end, at most _LONGEST of the phase.
    """
    windows = {window.phase: window for window in run.windows}
    late = Counter(r.phase for r in run.records if _is_late(r, windows[r.phase], summary))
    points = []
    for number, rate in enumerate(sorted(rates)):
        phase = phase_name(number)
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
    """A failed call is always late."""
    e2e = summary.phases[window.phase].e2e
    grace = min(e2e.mean / 1000 if e2e else 0.0, _LONGEST * window.seconds)
    return record.outcome == "failed" or record.ended > window.began + window.seconds + grace


def knee_of(points: Sequence[Point]) -> int | None:
    """Index of the last rate up to which no call fails, few are late and p99 TTFT stays low."""
    calm = next((p.ttft_p99_ms for p in points if p.ttft_p99_ms), None)
    knee = None
    for number, point in enumerate(points):
        is_quick = calm is not None and (point.ttft_p99_ms or float("inf")) <= _CALM * calm
        keeps_up = point.late <= max(_LATE_SHARE * point.calls, _LATE_FEW)
        if point.failed or not keeps_up or not is_quick:
            break
        knee = number
    return knee


def phase_name(number: int) -> str:
    """The phase of the sweep's rate of this index."""
    return f"rate-{number + 1:02}"

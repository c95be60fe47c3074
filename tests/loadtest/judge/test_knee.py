"""Points of a sweep, and its knee."""

from __future__ import annotations

import pytest
from load_records import record, run_of, scenario_of, window

from loadtest.judge.knee import Point, knee_of, points_of
from loadtest.judge.summary import summarize
from loadtest.sweep import sweeping


def point(late: int, ttft: float | None, failed: int = 0) -> Point:
    return Point(
        offered=1, calls=100, late=late, reached=1, tokens=10, ttft_p99_ms=ttft, failed=failed
    )


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([point(0, 50), point(0, 60), point(25, 60)], 1),  # no longer answered in time
        ([point(0, 50), point(0, 251), point(0, 60)], 0),  # slow, independent of later rates
        ([point(0, 50), point(0, 60, failed=1)], 0),
        ([point(0, 50), point(5, 60)], 1),  # few enough
        ([point(50, 50), point(50, 60)], None),
        ([point(100, None)], None),
        ([], None),
    ],
)
def test_the_knee_is_the_last_rate_with_few_late_calls_and_low_ttft(points, knee):
    assert knee_of(points) == knee


def test_points_have_the_order_of_the_rates():
    low, high = points_of_calls([0, 0.2], [0, 0.2, 0.4])
    assert (low.offered, low.calls, low.late, low.reached) == (2, 2, 0, 0.2)
    assert (high.offered, high.calls, high.late, high.reached) == (4, 3, 0, 0.3)


def points_of_calls(*due: list[float], lasting: float = 0.2) -> list[Point]:
    """Points of phases of ten seconds, at rates 2, 4 ..., with calls at these times."""
    rates = [2.0 * (number + 1) for number in range(len(due))]
    phases = [f"rate-{number + 1:02}" for number in range(len(due))]
    calls = [
        record(
            phase=phase, scheduled=began + at, ended=began + at + lasting, first=began + at + 0.1
        )
        for phase, began, times in zip(phases, (50, 100, 150), due, strict=False)
        for at in times
    ]
    windows = [window(phase, began) for phase, began in zip(phases, (50, 100, 150), strict=False)]
    run = run_of(*calls, windows=windows)
    return points_of(run, summarize(run, sweeping(scenario_of(), "mixed", rates, 10)), rates)


def test_calls_that_end_shortly_after_the_phase_are_in_time():
    (point,) = points_of_calls([at / 2 for at in range(19)], lasting=2.0)
    assert (point.calls, point.late) == (19, 0)
    assert knee_of([point]) == 0


def test_calls_that_end_long_after_the_phase_are_late():
    (point,) = points_of_calls([at / 2 for at in range(20)], lasting=9.0)
    assert point.late == 12  # due after 3.5 s: the grace is at most a quarter of the phase
    assert knee_of([point]) is None

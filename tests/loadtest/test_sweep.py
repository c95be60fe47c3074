"""A sweep's rates, its phases, and where the knee is."""

from __future__ import annotations

import pytest
from load_records import record, run_of, scenario_of, window

from loadtest.errors import OptionsClash
from loadtest.judge.summary import summarize
from loadtest.sweep import (
    SHARES,
    Point,
    knee_of,
    measuring_capacity,
    points_of,
    rates_of,
    sweeping,
)


def point(late: int, ttft: float | None, failed: int = 0) -> Point:
    return Point(
        offered=1, calls=100, late=late, reached=1, tokens=10, ttft_p99_ms=ttft, failed=failed
    )


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([point(0, 50), point(0, 60), point(25, 60)], 1),  # no longer answered in time
        ([point(0, 50), point(0, 251), point(0, 60)], 0),  # slow, whatever comes later
        ([point(0, 50), point(0, 60, failed=1)], 0),
        ([point(0, 50), point(5, 60)], 1),  # as good as all
        ([point(50, 50), point(50, 60)], None),
        ([point(100, None)], None),
        ([], None),
    ],
)
def test_the_knee_is_the_last_rate_that_is_kept_up_with_calmly(points, knee):
    assert knee_of(points) == knee


def test_each_rate_has_a_phase_and_the_lowest_comes_first():
    swept = sweeping(scenario_of(), "mixed", [8, 2, 4], 15)
    rates = [phase.traffic["mixed"].rate for phase in swept.phases]
    assert rates == [2, 2, 4, 8]  # the first one warms up
    assert [phase.measured for phase in swept.phases] == [False, True, True, True]


def test_expectations_of_the_scenario_are_not_those_of_the_sweep():
    own = scenario_of(expect=[{"metric": "failed", "phase": "steady", "at_most": 0}])
    assert sweeping(own, "mixed", [1], 1).expect == ()


def test_points_are_read_off_the_phases_in_the_order_of_the_rates():
    low, high = points_of_calls([0, 0.2], [0, 0.2, 0.4])
    assert (low.offered, low.calls, low.late, low.reached) == (2, 2, 0, 0.2)
    assert (high.offered, high.calls, high.late, high.reached) == (4, 3, 0, 0.3)


def points_of_calls(*due: list[float], lasting: float = 0.2) -> list[Point]:
    """Of phases of ten seconds, at rates 2, 4 ..., with calls at these times."""
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


def test_a_server_keeps_up_although_its_last_calls_end_after_the_phase_and_chance_sent_fewer():
    (point,) = points_of_calls([at / 2 for at in range(19)], lasting=2.0)
    assert (point.calls, point.late) == (19, 0)
    assert knee_of([point]) == 0


def test_calls_that_last_longer_and_longer_are_late():
    (point,) = points_of_calls([at / 2 for at in range(20)], lasting=9.0)
    assert point.late == 12  # those due after 3.5 s: a quarter of the phase is the most
    assert knee_of([point]) is None


def test_rates_lie_around_what_a_closed_loop_got():
    asked = measuring_capacity(scenario_of(), "mixed", 10)
    calls = [record(phase="capacity", scheduled=100 + n / 10, number=n) for n in range(40)]
    run = run_of(*calls, windows=[window("capacity", 100)])
    assert rates_of(summarize(run, asked)) == [round(4 * share, 2) for share in SHARES]
    nothing = run_of(windows=[window("capacity", 100)])
    with pytest.raises(OptionsClash, match="give --rates"):
        rates_of(summarize(nothing, asked))

"""A sweep's rates, its phases, and where the knee is."""

from __future__ import annotations

import pytest
from load_records import record, run_of, scenario_of, window

from loadtest.errors import OptionsClash
from loadtest.summary import summarize
from loadtest.sweep import (
    SHARES,
    Point,
    knee_of,
    measuring_capacity,
    points_of,
    rates_of,
    sweeping,
)


def point(offered: float, reached: float, ttft: float | None, failed: int = 0) -> Point:
    return Point(
        offered=offered, reached=reached, tokens=10 * reached, ttft_p99_ms=ttft, failed=failed
    )


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([point(1, 1, 50), point(2, 2, 60), point(4, 3, 900)], 1),  # no longer answered in time
        ([point(1, 1, 50), point(2, 2, 251), point(4, 4, 60)], 0),  # slow, whatever comes later
        ([point(1, 1, 50), point(2, 2, 60, failed=1)], 0),
        ([point(1, 1, 50), point(2, 1.9, 60)], 1),  # as good as all
        ([point(1, 0.5, 50), point(2, 0.5, 60)], None),
        ([point(1, 0, None)], None),
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
    swept = sweeping(scenario_of(), "mixed", [4, 2], 10)
    run = run_of(
        *(record(phase="rate-02", scheduled=100 + n, number=n) for n in range(3)),
        windows=[window("warm-up"), window("rate-01", 50), window("rate-02", 100)],
    )
    low, high = points_of(summarize(run, swept), [4, 2])
    assert (low.offered, low.reached) == (2, 0)
    assert (high.offered, high.reached) == (4, 0.3)


def test_rates_lie_around_what_a_closed_loop_got():
    asked = measuring_capacity(scenario_of(), "mixed", 10)
    calls = [record(phase="capacity", scheduled=100 + n / 10, number=n) for n in range(40)]
    run = run_of(*calls, windows=[window("capacity", 100)])
    assert rates_of(summarize(run, asked)) == [round(4 * share, 2) for share in SHARES]
    nothing = run_of(windows=[window("capacity", 100)])
    with pytest.raises(OptionsClash, match="give --rates"):
        rates_of(summarize(nothing, asked))

"""The scenarios of a sweep, and the rates it chooses."""

from __future__ import annotations

import pytest
from load_records import record, run_of, scenario_of, window

from loadtest.errors import OptionsClash
from loadtest.judge.summary import summarize
from loadtest.sweep import SHARES, measuring_capacity, rates_of, sweeping


def test_each_rate_has_a_phase_with_the_lowest_first():
    swept = sweeping(scenario_of(), "mixed", [8, 2, 4], 15)
    rates = [phase.traffic["mixed"].rate for phase in swept.phases]
    assert rates == [2, 2, 4, 8]  # the first one warms up
    assert [phase.measured for phase in swept.phases] == [False, True, True, True]


def test_a_sweep_drops_the_scenarios_expectations():
    own = scenario_of(expect=[{"metric": "failed", "phase": "steady", "at_most": 0}])
    assert sweeping(own, "mixed", [1], 1).expect == ()


def test_rates_are_shares_of_the_closed_loops_throughput():
    asked = measuring_capacity(scenario_of(), "mixed", 10)
    calls = [record(phase="capacity", scheduled=100 + n / 10, number=n) for n in range(40)]
    run = run_of(*calls, windows=[window("capacity", 100)])
    assert rates_of(summarize(run, asked)) == [round(4 * share, 2) for share in SHARES]
    nothing = run_of(windows=[window("capacity", 100)])
    with pytest.raises(OptionsClash, match="give --rates"):
        rates_of(summarize(nothing, asked))

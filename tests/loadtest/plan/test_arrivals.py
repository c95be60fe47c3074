"""Times come at the rate asked for, with the spread asked for, and are the seed's."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.plan import arrivals
from loadtest.plan.arrivals import times
from loadtest.plan.traffic import Gamma, Poisson, Ramp, Steady, Steps

SECONDS = 1000.0
RATES = st.floats(0.01, 50)
ARRIVALS = st.one_of(
    st.builds(Poisson, kind=st.just("poisson"), rate=RATES),
    st.builds(Gamma, kind=st.just("gamma"), rate=RATES, cv=st.floats(0.01, 16)),
    st.builds(Steady, kind=st.just("constant"), rate=RATES),
    st.builds(Ramp, kind=st.just("ramp"), start=RATES, end=RATES),
    st.builds(Steps, kind=st.just("steps"), rates=st.lists(RATES, min_size=1, max_size=5)),
)


def draw(arrival: arrivals.Timed, seconds: float = SECONDS) -> list[float]:
    return times(arrival, seconds, random.Random("arrivals"))


def cv_of_gaps(drawn: list[float]) -> float:
    gaps = [later - earlier for earlier, later in pairwise(drawn)]
    return statistics.stdev(gaps) / statistics.mean(gaps)


@settings(deadline=None)
@given(arrival=ARRIVALS, seconds=st.floats(0.01, 20), seed=st.integers())
def test_times_ascend_within_the_phase_and_are_the_seeds(arrival, seconds, seed):
    drawn = times(arrival, seconds, random.Random(seed))
    assert drawn == sorted(drawn)
    assert all(0 <= at < seconds for at in drawn)
    assert drawn == times(arrival, seconds, random.Random(seed))


@pytest.mark.parametrize(
    ("arrival", "cv"),
    [
        (Poisson(kind="poisson", rate=20), 1.0),
        (Gamma(kind="gamma", rate=20, cv=1), 1.0),
        (Gamma(kind="gamma", rate=20, cv=4), 4.0),
        (Gamma(kind="gamma", rate=20, cv=0.25), 0.25),
    ],
    ids=["poisson", "gamma-1", "gamma-4", "gamma-0.25"],
)
def test_rate_and_spread_are_those_asked_for(arrival, cv):
    drawn = draw(arrival)
    assert len(drawn) / SECONDS == pytest.approx(20, rel=0.05)
    assert cv_of_gaps(drawn) == pytest.approx(cv, rel=0.1)


def test_constant_begins_at_once_and_keeps_its_distance():
    assert draw(Steady(kind="constant", rate=4), seconds=1.0) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("start", "end"), [(2.0, 38.0), (38.0, 2.0)])
def test_a_ramp_goes_evenly_from_one_rate_to_the_other(start, end):
    drawn = draw(Ramp(kind="ramp", start=start, end=end))
    for quarter in range(4):
        expected = start + (end - start) * (quarter + 0.5) / 4
        within = sum(quarter <= at / SECONDS * 4 < quarter + 1 for at in drawn)
        assert within / (SECONDS / 4) == pytest.approx(expected, rel=0.08)


def test_steps_have_a_rate_for_each_equal_part():
    drawn = draw(Steps(kind="steps", rates=[10, 1, 30]))
    parts = [sum(part <= at / SECONDS * 3 < part + 1 for at in drawn) for part in range(3)]
    assert [n / (SECONDS / 3) for n in parts] == pytest.approx([10, 1, 30], rel=0.1)


def test_far_too_many_are_cut_off_one_above_what_a_plan_may_hold(monkeypatch):
    monkeypatch.setattr(arrivals, "MOST_CALLS", 100)
    assert len(draw(Poisson(kind="poisson", rate=100_000), seconds=86_400)) == 101

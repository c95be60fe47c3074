"""Draws have the given distributions and depend on the seed alone."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadtest.plan import draws
from loadtest.plan.draws import arrival_times, choose_adapter, draw_length
from loadtest.plan.traffic import (
    Evenly,
    Gamma,
    HotSet,
    InTurn,
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

SECONDS = 1000.0
RATES = st.floats(0.01, 50)
ARRIVALS = st.one_of(
    st.builds(Poisson, kind=st.just("poisson"), rate=RATES),
    st.builds(Gamma, kind=st.just("gamma"), rate=RATES, cv=st.floats(0.01, 16)),
    st.builds(Steady, kind=st.just("constant"), rate=RATES),
    st.builds(Ramp, kind=st.just("ramp"), start=RATES, end=RATES),
    st.builds(Steps, kind=st.just("steps"), rates=st.lists(RATES, min_size=1, max_size=5)),
)


def times_of(arrival: draws.Timed, seconds: float = SECONDS) -> list[float]:
    return arrival_times(arrival, seconds, random.Random("arrivals"))


def cv_of_gaps(drawn: list[float]) -> float:
    gaps = [later - earlier for earlier, later in pairwise(drawn)]
    return statistics.stdev(gaps) / statistics.mean(gaps)


@settings(deadline=None)
@given(arrival=ARRIVALS, seconds=st.floats(0.01, 20), seed=st.integers())
def test_times_ascend_within_the_phase_and_depend_on_the_seed_alone(arrival, seconds, seed):
    drawn = arrival_times(arrival, seconds, random.Random(seed))
    assert drawn == sorted(drawn)
    assert all(0 <= at < seconds for at in drawn)
    assert drawn == arrival_times(arrival, seconds, random.Random(seed))


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
def test_arrivals_have_the_given_rate_and_variation(arrival, cv):
    drawn = times_of(arrival)
    assert len(drawn) / SECONDS == pytest.approx(20, rel=0.05)
    assert cv_of_gaps(drawn) == pytest.approx(cv, rel=0.1)


def test_constant_arrivals_begin_at_zero_with_equal_gaps():
    assert times_of(Steady(kind="constant", rate=4), seconds=1.0) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("start", "end"), [(2.0, 38.0), (38.0, 2.0)])
def test_a_ramp_changes_its_rate_linearly(start, end):
    drawn = times_of(Ramp(kind="ramp", start=start, end=end))
    for quarter in range(4):
        expected = start + (end - start) * (quarter + 0.5) / 4
        within = sum(quarter <= at / SECONDS * 4 < quarter + 1 for at in drawn)
        assert within / (SECONDS / 4) == pytest.approx(expected, rel=0.08)


def test_each_step_takes_an_equal_part_of_the_phase():
    drawn = times_of(Steps(kind="steps", rates=[10, 1, 30]))
    parts = [sum(part <= at / SECONDS * 3 < part + 1 for at in drawn) for part in range(3)]
    assert [n / (SECONDS / 3) for n in parts] == pytest.approx([10, 1, 30], rel=0.1)


def test_an_excess_of_arrivals_ends_one_above_the_limit(monkeypatch):
    monkeypatch.setattr(draws, "MOST_CALLS", 100)
    assert len(times_of(Poisson(kind="poisson", rate=100_000), seconds=86_400)) == 101


def test_a_fixed_length_is_itself():
    assert draw_length(17, random.Random(0)) == 17


def test_uniform_lengths_include_both_ends():
    rng = random.Random(0)
    drawn = {draw_length(Uniform(kind="uniform", least=3, most=6), rng) for _ in range(200)}
    assert drawn == {3, 4, 5, 6}


@settings(deadline=None)
@given(
    median=st.floats(1e-6, 1e300),
    sigma=st.floats(0.01, 4),
    most=st.integers(1, 1_000_000),
    seed=st.integers(),
)
@example(median=1e308, sigma=4.0, most=9, seed=1)  # too large for exp
def test_lognormal_lengths_are_between_one_and_most(median, sigma, most, seed):
    length = LogNormal(kind="lognormal", median=median, sigma=sigma, most=most)
    assert 1 <= draw_length(length, random.Random(seed)) <= most


def test_lognormal_lengths_have_their_median_and_sigma():
    rng = random.Random("lengths")
    length = LogNormal(kind="lognormal", median=200, sigma=0.8, most=1_000_000)
    drawn = [draw_length(length, rng) for _ in range(20_000)]
    assert statistics.median(drawn) == pytest.approx(200, rel=0.03)
    assert statistics.stdev(math.log(n) for n in drawn) == pytest.approx(0.8, rel=0.03)


CALLS = 20_000
POPULARITIES = st.one_of(
    st.just(Evenly(kind="uniform")),
    st.builds(PowerLaw, kind=st.just("power-law"), alpha=st.floats(0.001, 10)),
    st.builds(Zipf, kind=st.just("zipf"), exponent=st.floats(0, 10)),
    st.builds(
        HotSet,
        kind=st.just("hot-set"),
        hot=st.integers(1, 20),
        share=st.floats(0, 1),
        every=st.integers(0, 50),
    ),
    st.just(InTurn(kind="in-turn")),
)


class Loaded(random.Random):
    """A generator that always returns the same number."""

    def __init__(self, shown: float) -> None:
        super().__init__()
        self.shown = shown

    def random(self) -> float:
        return self.shown


def shares(popularity: Popularity, count: int, calls: range = range(CALLS)) -> list[float]:
    rng = random.Random("popularity")
    counts = Counter(choose_adapter(popularity, count, number, rng) for number in calls)
    return [counts[adapter] / len(calls) for adapter in range(count)]


@settings(deadline=None)
@given(
    popularity=POPULARITIES,
    count=st.integers(1, 40),
    number=st.integers(0, 10**9),
    seed=st.integers(),
)
def test_the_chosen_adapter_is_valid_and_depends_on_the_seed_alone(popularity, count, number, seed):
    choice = choose_adapter(popularity, count, number, random.Random(seed))
    assert 0 <= choice < count
    assert choice == choose_adapter(popularity, count, number, random.Random(seed))


@pytest.mark.parametrize("shown", [0.0, 1 - 2**-53])
@pytest.mark.parametrize(
    "popularity",
    [PowerLaw(kind="power-law", alpha=10), Zipf(kind="zipf", exponent=1)],
    ids=lambda p: p.kind,
)
def test_extreme_random_numbers_give_valid_adapters(popularity, shown):
    assert 0 <= choose_adapter(popularity, 10_000, 0, Loaded(shown)) < 10_000


def test_uniform_popularity_is_even():
    assert shares(Evenly(kind="uniform"), 5) == pytest.approx([0.2] * 5, abs=0.02)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 3.0])
def test_power_law_has_the_distribution_of_numpys_power(alpha):
    got = shares(PowerLaw(kind="power-law", alpha=alpha), 10)
    # Its distribution function is x^alpha.
    expected = [((k + 1) / 10) ** alpha - (k / 10) ** alpha for k in range(10)]
    assert got == pytest.approx(expected, abs=0.02)


def test_power_law_favours_low_indices_below_alpha_one_and_high_ones_above():
    assert shares(PowerLaw(kind="power-law", alpha=0.3), 10)[0] > 0.4
    assert shares(PowerLaw(kind="power-law", alpha=3.0), 10)[9] > 0.2


@pytest.mark.parametrize("exponent", [0.0, 0.9, 2.0])
def test_zipf_weights_are_inverse_powers_of_the_rank(exponent):
    weights = [1 / rank**exponent for rank in range(1, 9)]
    expected = [weight / sum(weights) for weight in weights]
    assert shares(Zipf(kind="zipf", exponent=exponent), 8) == pytest.approx(expected, abs=0.02)


def test_the_hot_set_gets_its_share_and_the_others_are_even():
    got = shares(HotSet(kind="hot-set", hot=2, share=0.8), 10)
    assert got == pytest.approx([0.4, 0.4, *[0.025] * 8], abs=0.015)


def test_the_hot_set_moves_on_and_wraps():
    popularity = HotSet(kind="hot-set", hot=2, share=1.0, every=1000)

    def hot_ones(begin: int) -> set[int]:
        got = shares(popularity, 4, range(begin, begin + 1000))
        return {adapter for adapter, share in enumerate(got) if share}

    assert [hot_ones(begin) for begin in (0, 1000, 3000, 4000)] == [{0, 1}, {1, 2}, {3, 0}, {0, 1}]


def test_a_hot_set_is_at_most_all_adapters():
    got = shares(HotSet(kind="hot-set", hot=9, share=0.5), 3)
    assert got == pytest.approx([1 / 3] * 3, abs=0.02)


def test_in_turn_visits_every_adapter_before_a_repetition():
    rng = random.Random(0)
    chosen = [choose_adapter(InTurn(kind="in-turn"), 3, number, rng) for number in range(7)]
    assert chosen == [0, 1, 2, 0, 1, 2, 0]

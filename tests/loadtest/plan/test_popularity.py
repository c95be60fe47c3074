"""Adapters get the shares that their popularity says, from the dice alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.plan.popularity import choose
from loadtest.plan.traffic import Evenly, HotSet, InTurn, Popularity, PowerLaw, Zipf

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
    """Dice that show the same number each time."""

    def __init__(self, shown: float) -> None:
        super().__init__()
        self.shown = shown

    def random(self) -> float:
        return self.shown


def shares(popularity: Popularity, count: int, calls: range = range(CALLS)) -> list[float]:
    dice = random.Random("popularity")
    counts = Counter(choose(popularity, count, number, dice) for number in calls)
    return [counts[adapter] / len(calls) for adapter in range(count)]


@settings(deadline=None)
@given(
    popularity=POPULARITIES,
    count=st.integers(1, 40),
    number=st.integers(0, 10**9),
    seed=st.integers(),
)
def test_the_choice_is_one_of_the_adapters_and_the_seeds(popularity, count, number, seed):
    choice = choose(popularity, count, number, random.Random(seed))
    assert 0 <= choice < count
    assert choice == choose(popularity, count, number, random.Random(seed))


@pytest.mark.parametrize("shown", [0.0, 1 - 2**-53])
@pytest.mark.parametrize(
    "popularity",
    [PowerLaw(kind="power-law", alpha=10), Zipf(kind="zipf", exponent=1)],
    ids=lambda p: p.kind,
)
def test_the_ends_of_the_dice_stay_within_the_adapters(popularity, shown):
    assert 0 <= choose(popularity, 10_000, 0, Loaded(shown)) < 10_000


def test_uniform_is_even():
    assert shares(Evenly(kind="uniform"), 5) == pytest.approx([0.2] * 5, abs=0.02)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 3.0])
def test_power_law_has_the_distribution_of_numpys_power(alpha):
    got = shares(PowerLaw(kind="power-law", alpha=alpha), 10)
    # Its distribution function is x^alpha.
    expected = [((k + 1) / 10) ** alpha - (k / 10) ** alpha for k in range(10)]
    assert got == pytest.approx(expected, abs=0.02)


def test_power_law_favours_low_numbers_below_one_and_high_ones_above():
    assert shares(PowerLaw(kind="power-law", alpha=0.3), 10)[0] > 0.4
    assert shares(PowerLaw(kind="power-law", alpha=3.0), 10)[9] > 0.2


@pytest.mark.parametrize("exponent", [0.0, 0.9, 2.0])
def test_zipfs_weights_are_the_inverse_powers_of_the_rank(exponent):
    weights = [1 / rank**exponent for rank in range(1, 9)]
    expected = [weight / sum(weights) for weight in weights]
    assert shares(Zipf(kind="zipf", exponent=exponent), 8) == pytest.approx(expected, abs=0.02)


def test_the_hot_set_gets_its_share_and_the_rest_is_even():
    got = shares(HotSet(kind="hot-set", hot=2, share=0.8), 10)
    assert got == pytest.approx([0.4, 0.4, *[0.025] * 8], abs=0.015)


def test_the_hot_set_moves_on_and_wraps():
    popularity = HotSet(kind="hot-set", hot=2, share=1.0, every=1000)

    def hot_ones(begin: int) -> set[int]:
        got = shares(popularity, 4, range(begin, begin + 1000))
        return {adapter for adapter, share in enumerate(got) if share}

    assert [hot_ones(begin) for begin in (0, 1000, 3000, 4000)] == [{0, 1}, {1, 2}, {3, 0}, {0, 1}]


def test_a_hot_set_of_more_than_all_is_all():
    got = shares(HotSet(kind="hot-set", hot=9, share=0.5), 3)
    assert got == pytest.approx([1 / 3] * 3, abs=0.02)


def test_in_turn_asks_every_one_before_any_twice():
    dice = random.Random(0)
    chosen = [choose(InTurn(kind="in-turn"), 3, number, dice) for number in range(7)]
    assert chosen == [0, 1, 2, 0, 1, 2, 0]

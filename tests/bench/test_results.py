"""Medians and ratios: of the rounds that both sides have, each round giving one ratio."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.results import Result, Spread, compare
from bench.rows import BASE16, MIXED, OURS16, PLAIN, Contest, Entry, Row


def row(goal: float | None = None) -> Row:
    return Row("r", "w", Contest("c"), Entry(OURS16, MIXED), Entry(BASE16, PLAIN), goal)


def test_the_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians():
    # The machine was twice as fast in round 1, and one side was disturbed in round 2.
    result = compare(row(), {0: 90, 1: 180, 2: 10}, {0: 100, 1: 200, 2: 100})
    assert result.ratio == Spread(0.9, 0.1, 0.9)
    assert (result.over, result.under, result.rounds) == (90, 100, 3)


def test_a_round_that_only_one_side_has_is_left_out():
    result = compare(row(), {0: 50, 1: 70}, {1: 100, 2: 1})
    assert (result.over, result.under, result.rounds) == (70, 100, 1)
    assert result.ratio == Spread(0.7, 0.7, 0.7)


def test_without_a_common_round_the_row_has_failed():
    result = compare(row(goal=0.9), {0: 50}, {1: 100})
    assert "no round" in result.failure
    assert result.ratio is None
    assert result.reached is None


@pytest.mark.parametrize(("goal", "reached"), [(0.5, True), (0.51, False), (None, None)])
def test_a_goal_is_reached_at_its_very_value(goal, reached):
    assert compare(row(goal), {0: 1}, {0: 2}).reached is reached


def test_a_row_that_failed_has_not_reached_its_goal():
    assert Result(row(goal=0.1), failure="it ended").reached is None


speeds = st.floats(min_value=0.1, max_value=1e6)


@given(st.lists(st.tuples(speeds, speeds), min_size=1, max_size=9))
def test_the_median_lies_within_the_spread(pairs):
    over = {number: pair[0] for number, pair in enumerate(pairs)}
    under = {number: pair[1] for number, pair in enumerate(pairs)}
    ratio = compare(row(), over, under).ratio
    assert ratio is not None
    assert ratio.least <= ratio.median <= ratio.most

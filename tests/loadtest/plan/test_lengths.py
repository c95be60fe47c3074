"""Lengths stay within their bounds and have the distribution asked for."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadtest.plan.lengths import draw
from loadtest.plan.traffic import LogNormal, Uniform


def test_a_number_is_that_number():
    assert draw(17, random.Random(0)) == 17


def test_uniform_reaches_both_ends_and_nothing_else():
    dice = random.Random(0)
    drawn = {draw(Uniform(kind="uniform", least=3, most=6), dice) for _ in range(200)}
    assert drawn == {3, 4, 5, 6}


@settings(deadline=None)
@given(
    median=st.floats(1e-6, 1e300),
    sigma=st.floats(0.01, 4),
    most=st.integers(1, 1_000_000),
    seed=st.integers(),
)
@example(median=1e308, sigma=4.0, most=9, seed=1)  # too large for exp
def test_lognormal_is_within_one_and_most(median, sigma, most, seed):
    length = LogNormal(kind="lognormal", median=median, sigma=sigma, most=most)
    assert 1 <= draw(length, random.Random(seed)) <= most


def test_lognormal_has_its_median_and_its_sigma():
    dice = random.Random("lengths")
    length = LogNormal(kind="lognormal", median=200, sigma=0.8, most=1_000_000)
    drawn = [draw(length, dice) for _ in range(20_000)]
    assert statistics.median(drawn) == pytest.approx(200, rel=0.03)
    assert statistics.stdev(math.log(n) for n in drawn) == pytest.approx(0.8, rel=0.03)

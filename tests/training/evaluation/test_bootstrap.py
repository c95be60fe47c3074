"""Intervals against exact ones, and where a bootstrap alone would promise too much."""

import math
import random

import numpy as np
import pytest

from training.evaluation.bootstrap import paired_difference, score_interval


def draw(seed: int, n: int, share: float) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(n)]


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    scores = [1.0] * 140 + [0.0] * 60
    found = score_interval(scores)
    assert (found.mean, found.n) == (0.7, 200)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 200)
    assert found.low == pytest.approx(0.7 - half, abs=0.01)
    assert found.high == pytest.approx(0.7 + half, abs=0.01)


def test_95_of_100_intervals_hold_the_truth() -> None:
    held = sum(
        interval.low <= 0.7 <= interval.high
        for interval in (score_interval(draw(seed, 100, 0.7)) for seed in range(100))
    )
    assert 89 <= held <= 99


def test_the_same_scores_have_the_same_interval() -> None:
    scores = [0.1, 0.5, 0.9] * 20
    assert score_interval(scores) == score_interval(scores)
    assert score_interval(scores) != score_interval(scores, seed=1)


def test_memory_is_bounded_and_the_mean_exact_for_many_scores() -> None:
    scores = list(np.linspace(0, 1, 50_001))
    found = score_interval(scores)
    assert found.mean == pytest.approx(0.5)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.2887 / math.sqrt(50_001), rel=0.1)


@pytest.mark.parametrize(("n", "low"), [(1, 0.025), (10, 0.6915), (200, 0.9817)])
def test_all_right_has_the_exact_interval(n: int, low: float) -> None:
    """Clopper and Pearson's; a bootstrap alone has no width here."""
    found = score_interval([1.0] * n)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(low, abs=1e-4)
    wrong = score_interval([0.0] * n)
    assert (wrong.low, wrong.high) == (0.0, pytest.approx(1 - low, abs=1e-4))


def test_one_equal_score_between_the_bounds_says_little() -> None:
    found = score_interval([0.5])
    assert (found.low, found.high) == (pytest.approx(0.0125), pytest.approx(0.9875))


def test_no_scores_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no scores"):
        score_interval([])


def test_a_paired_difference_is_narrower_than_its_sides() -> None:
    """Both answer the same examples: hard ones are hard for both."""
    base = draw(0, 300, 0.5)
    better = [1.0 if at % 20 == 0 else score for at, score in enumerate(base)]
    found = paired_difference(better, base)
    assert 0 < found.low < found.mean < found.high
    assert found.exceeds_noise
    sides = score_interval(better), score_interval(base)
    assert found.high - found.low < min(side.high - side.low for side in sides)


def test_a_difference_in_both_directions_is_noise() -> None:
    one, other = draw(1, 50, 0.5), draw(2, 50, 0.5)
    found = paired_difference(one, other)
    assert found.low < 0 < found.high
    assert not found.exceeds_noise
    turned = paired_difference(other, one)
    assert turned.mean == pytest.approx(-found.mean)


def test_a_loss_exceeds_noise_too() -> None:
    found = paired_difference([0.0] * 90 + [1.0] * 10, [1.0] * 100)
    assert found.high < 0
    assert found.exceeds_noise


@pytest.mark.parametrize(("n", "exceeds"), [(1, False), (3, False), (30, True)])
def test_always_better_needs_more_than_a_few_examples(n: int, exceeds: bool) -> None:
    assert paired_difference([1.0] * n, [0.0] * n).exceeds_noise is exceeds


def test_equal_answers_differ_by_nothing() -> None:
    found = paired_difference([1.0, 0.0] * 100, [1.0, 0.0] * 100)
    assert found.mean == 0
    assert found.low < 0 < found.high
    assert not found.exceeds_noise


def test_sides_of_unlike_length_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 0.0])

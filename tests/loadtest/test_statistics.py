"""Figures by hand."""

from __future__ import annotations

import pytest

from loadtest.statistics import jain_of, latency_of, percentile, ratio_of


def test_percentiles_are_by_nearest_rank():
    ordered = [float(n) for n in range(1, 101)]
    assert [percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999)] == [50, 90, 99, 100]
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2
    assert percentile([7.0], 0.0) == percentile([7.0], 1.0) == 7


@pytest.mark.parametrize("count", [1000, 3000, 7000, 10_000])
def test_a_rank_that_is_a_whole_number_is_not_rounded_up(count):
    assert percentile(list(range(1, count + 1)), 0.999) == count * 999 // 1000


def test_a_latency_is_in_milliseconds_and_does_not_need_order():
    latency = latency_of([0.003, 0.001, 0.002])
    assert latency is not None
    assert (latency.p50, latency.p99, latency.mean, latency.count) == (2, 3, pytest.approx(2), 3)


def test_there_is_no_latency_of_nothing():
    assert latency_of([]) is None


def test_jain_is_one_for_equals_and_one_nth_when_one_has_all():
    assert jain_of([3.0, 3.0, 3.0, 3.0]) == pytest.approx(1)
    assert jain_of([5.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 4)
    assert jain_of([1.0, 2.0, 3.0]) == pytest.approx(36 / (3 * 14))


@pytest.mark.parametrize("shares", [[], [1.0], [0.0, 0.0]])
def test_jain_has_nothing_to_say_of_one_or_of_nothing(shares):
    assert jain_of(shares) is None


def test_a_ratio_is_the_median_of_the_rounds_own_and_spans_their_range():
    ratio = ratio_of([(90, 100), (50, 100), (400, 200)])
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (0.9, 0.5, 2.0, 3)


@pytest.mark.parametrize("pairs", [[], [(1.0, 0.0)]])
def test_a_ratio_of_nothing_or_over_nothing_is_refused(pairs):
    with pytest.raises(ValueError, match="above zero"):
        ratio_of(pairs)

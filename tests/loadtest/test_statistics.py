"""Statistics against values computed by hand."""

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
def test_a_whole_rank_is_not_rounded_up(count):
    assert percentile(list(range(1, count + 1)), 0.999) == count * 999 // 1000


def test_a_latency_is_in_milliseconds_and_does_not_need_order():
    latency = latency_of([0.003, 0.001, 0.002])
    assert latency is not None
    assert (latency.p50, latency.p99, latency.mean, latency.count) == (2, 3, pytest.approx(2), 3)


def test_no_values_have_no_latency():
    assert latency_of([]) is None


def test_jain_is_one_for_equal_shares_and_one_nth_for_a_single_one():
    assert jain_of([3.0, 3.0, 3.0, 3.0]) == pytest.approx(1)
    assert jain_of([5.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 4)
    assert jain_of([1.0, 2.0, 3.0]) == pytest.approx(36 / (3 * 14))


@pytest.mark.parametrize("shares", [[], [1.0], [0.0, 0.0]])
def test_jain_is_undefined_for_one_share_or_zeros(shares):
    assert jain_of(shares) is None


def test_a_ratio_is_the_median_of_the_rounds_with_their_range():
    ratio = ratio_of([(90, 100), (50, 100), (400, 200)])
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (0.9, 0.5, 2.0, 3)


@pytest.mark.parametrize("pairs", [[], [(1.0, 0.0)]])
def test_a_ratio_without_rounds_or_over_zero_is_refused(pairs):
    with pytest.raises(ValueError, match="above zero"):
        ratio_of(pairs)

"""The sliding window against a list of all that was ever added."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gate.windows import TICKS, WINDOW_SECONDS, SlidingWindow

TICK = 1 / TICKS
steps = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 1000)), max_size=60)


@given(steps)
def test_what_counts_is_that_of_the_last_minute_to_a_tick(steps):
    window, now, added = SlidingWindow(), 1000.0, []
    for pause, amount in steps:
        now += pause
        window.add(amount, now)
        added.append((now, amount))
        least = sum(each for moment, each in added if moment > now - WINDOW_SECONDS)
        most = sum(each for moment, each in added if moment > now - WINDOW_SECONDS - TICK)
        assert least <= window.total(now) <= most


@given(steps)
def test_it_says_truly_when_each_amount_leaves(steps):
    window, now = SlidingWindow(), 1000.0
    for pause, amount in steps:
        now += pause
        window.add(amount, now)
    total = window.total(now)
    for moment, amount in list(window.leaving()):
        assert window.total(math.nextafter(moment, 0.0)) == total
        total -= amount
        assert window.total(moment) == total
    assert total == 0


def test_one_a_second_meets_no_edge_at_sixty_a_minute():
    """LiteLLM #24677: false refusals where a window begins anew."""
    window = SlidingWindow()
    for second in range(600):
        assert window.total(second) + 1 <= WINDOW_SECONDS, f"refused at second {second}"
        window.add(1, second)


def test_a_burst_at_the_end_of_a_minute_counts_for_the_next():
    window = SlidingWindow()
    window.add(100, 59.9)
    assert window.total(60.1) == 100
    assert window.total(119.8) == 100
    assert window.total(119.95) == 0


def test_what_is_taken_back_no_longer_counts_and_never_twice():
    window = SlidingWindow()
    first, second = window.add(5, 0.0), window.add(7, 30.0)
    window.take_back(5, first)
    assert window.total(30.0) == 7
    window.take_back(7, second)
    window.add(1, 100.0)
    window.take_back(7, second)
    assert window.total(100.0) == 1


def test_a_window_is_bounded_however_much_is_added():
    window = SlidingWindow()
    for number in range(30_000):
        window.add(1, number / 250)
        window.total(number / 250)
    assert len(list(window.leaving())) <= WINDOW_SECONDS * TICKS + 1
    assert window.total(30_000 / 250) == pytest.approx(WINDOW_SECONDS * 250, rel=0.001)

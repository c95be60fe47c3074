"""Numbers as people read them."""

from __future__ import annotations

import pytest

from loadtest.report.figures import figure, in_column, percent


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), (0.0, "0"), (0.01234, "0.0123"), (12.0, "12"), (99.97, "100"), (1234.5, "1,234")],
)
def test_a_figure_has_three_digits(value, words):
    assert figure(value) == words


@pytest.mark.parametrize(("value", "words"), [(12.0, "12.0"), (5.1, "5.10"), (None, "-")])
def test_a_column_keeps_trailing_zeros(value, words):
    assert in_column(value) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (None, "-"),
        (0.0, "0.0 %"),
        (1.0, "100.0 %"),
        (0.5, "50.0 %"),
        (0.9996, "99.96 %"),
        (0.00002, "0.002 %"),
    ],
)
def test_nearly_all_is_not_rounded_to_all(share, words):
    assert percent(share) == words

"""Numbers as text."""

from __future__ import annotations

from loadtest.report.figures import figure, in_column, percent


def test_a_figure_has_three_digits():
    words = {None: "-", 0.0: "0", 0.01234: "0.0123", 12.0: "12", 99.97: "100", 1234.5: "1,234"}
    assert {value: figure(value) for value in words} == words


def test_a_column_keeps_trailing_zeros():
    words = {12.0: "12.0", 5.1: "5.10", None: "-"}
    assert {value: in_column(value) for value in words} == words


def test_nearly_all_is_not_rounded_to_all():
    words = {
        None: "-",
        0.0: "0.0 %",
        1.0: "100.0 %",
        0.5: "50.0 %",
        0.9996: "99.96 %",
        0.00002: "0.002 %",
    }
    assert {share: percent(share) for share in words} == words

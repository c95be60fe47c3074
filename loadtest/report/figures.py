"""Numbers as people read them. A figure that is missing is a dash."""

from __future__ import annotations

MISSING = "-"


def figure(value: float | None) -> str:
    """Three significant digits, without zeros at the end; thousands are set apart."""
    if value is None:
        return MISSING
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def in_column(value: float | None) -> str:
    """As `figure`, but with zeros at the end, so that a column's figures are of one kind."""
    if value is None or value == 0 or abs(value) >= 99.95:
        return figure(value)
    return f"{value:#.3g}"


def percent(share: float | None) -> str:
    """What is nearly all or nearly nothing is not rounded to it."""
    if share is None:
        return MISSING
    digits = next((n for n in (1, 2, 3) if 0 < round(share, n + 2) < 1), 1)
    return f"{100 * share:.{digits}f} %"

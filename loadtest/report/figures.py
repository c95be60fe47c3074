"""Numbers as text; a missing one is a dash."""

from __future__ import annotations

MISSING = "-"


def figure(value: float | None) -> str:
    """Three significant digits without trailing zeros, with thousands separators."""
    if value is None:
        return MISSING
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def in_column(value: float | None) -> str:
    """Like `figure`, but with trailing zeros, so that the numbers of a column align."""
    if value is None or value == 0 or abs(value) >= 99.95:
        return figure(value)
    return f"{value:#.3g}"


def percent(share: float | None) -> str:
    """Percent; nearly 0 or nearly 100 % gets more digits instead of being rounded to it."""
    if share is None:
        return MISSING
    digits = next((n for n in (1, 2, 3) if 0 < round(share, n + 2) < 1), 1)
    return f"{100 * share:.{digits}f} %"

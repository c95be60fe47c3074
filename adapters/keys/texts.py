"""Durations and budgets as people write them: 90d, 1h, 50M/month."""

from __future__ import annotations

import re
from datetime import timedelta

from adapters.errors import KeyInvalid, quote
from adapters.keys.record import PERIODS, Budget

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_DURATION = re.compile(r"(\d{1,9})([smhd])")
_BUDGET = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([kMG]?)/([a-z]{1,8})")


def read_duration(text: str) -> timedelta:
    """Raises KeyInvalid."""
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if found is None or seconds > 100 * 366 * 86_400:
        raise KeyInvalid(
            f"{quote(text)} is no length of time",
            "write a whole number and s, m, h or d, such as 90d; at most a hundred years",
        )
    return timedelta(seconds=seconds)


def read_budget(text: str) -> Budget:
    """Raises KeyInvalid."""
    found = _BUDGET.fullmatch(text)
    if found is None or found[3] not in PERIODS:
        raise KeyInvalid(
            f"{quote(text)} is no budget of tokens",
            "write a number (k, M and G are thousands, millions and billions) and /day or /month,"
            " such as 50M/month",
        )
    period = next(each for each in PERIODS if each == found[3])
    return Budget(round(float(found[1]) * _MULTIPLES[found[2]]), period)

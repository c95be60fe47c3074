"""Limits on calls: what they are, and those of adapters and of keys on adapters.

A key's own limits come with the key. Knows nothing of how calls are held to them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

Period = Literal["day", "month"]
MAX_LIMIT = 2**53  # a number that JSON's readers keep exact
_BUDGET = re.compile(r"(\d{1,16})([kMG]?)/(day|month)")
_FACTORS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens in each day or month of UTC."""

    tokens: int
    period: Period

    def __str__(self) -> str:
        return f"{self.tokens}/{self.period}"

    def period_at(self, moment: datetime) -> tuple[datetime, datetime]:
        """When the period of a moment begins, and when the next one does."""
        day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self.period == "day":
            return day, day.fromordinal(day.toordinal() + 1).replace(tzinfo=UTC)
        first = day.replace(day=1)
        year, month = divmod(first.year * 12 + first.month, 12)
        return first, first.replace(year=year, month=month + 1)


@dataclass(frozen=True, slots=True)
class RateLimits:
    """None: no such limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    in_flight: int | None = None
    budget: Budget | None = None


class RuleId(NamedTuple):
    """Whom limits are for; an empty text is any key, or any adapter."""

    key: str
    adapter: str

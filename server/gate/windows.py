"""Amounts of the last minute: a sliding-window log, which any 60 seconds hold to the limit.

Knows nothing of calls, keys or what is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

WINDOW_SECONDS = 60
TICKS = 100  # a second: what falls into one tick is one entry, so a log is bounded


@dataclass(slots=True, eq=False)
class Entry:
    """What was added in one tick; it counts as added at the last of its moments."""

    moment: float
    amount: int


class SlidingWindow:
    """The sum of what was added in the last 60 seconds.

    Exact where at most one amount comes in 10 ms; of several, the earlier count at most 10 ms
    longer. None counts shorter. Moments are seconds of any monotonic clock, in order.
    """

    __slots__ = ("_entries", "_total")

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()  # the oldest first
        self._total = 0

    def add(self, amount: int, now: float) -> Entry:
        """Count an amount; returns where it stands, for `take_back`."""
        last = self._entries[-1] if self._entries else None
        if last is None or int(last.moment * TICKS) != int(now * TICKS):
            last = Entry(now, 0)
            self._entries.append(last)
        last.moment = now
        last.amount += amount
        self._total += amount
        return last

    def take_back(self, amount: int, entry: Entry) -> None:
        """Uncount what was added there; nothing, if that has left the window."""
        amount = min(amount, entry.amount)
        entry.amount -= amount
        self._total -= amount

    def total(self, now: float) -> int:
        while self._entries and self._entries[0].moment + WINDOW_SECONDS <= now:
            left = self._entries.popleft()
            self._total -= left.amount
            left.amount = 0
        return self._total

    @property
    def empty_at(self) -> float:
        """When all will have left; 0.0 if nothing is there."""
        return self._entries[-1].moment + WINDOW_SECONDS if self._entries else 0.0

    def leaving(self) -> Iterator[tuple[float, int]]:
        """When each amount will have left, oldest first: (moment, amount)."""
        for entry in self._entries:
            yield entry.moment + WINDOW_SECONDS, entry.amount

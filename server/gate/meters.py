"""One limit's account: what of it is used, what running calls may still use, when there is room.

Tokens are reserved when a call enters and counted as the engine makes them; what of a reservation
is not counted yet is held, however long the call runs. So the tokens made in any 60 seconds never
pass a limit: all that will be made is held at the last admission before it. Knows no clock and no
call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from heapq import merge
from typing import Literal, NamedTuple

from adapters.catalog.shares import Stake
from server.gate.windows import WINDOW_SECONDS, Entry, SlidingWindow

Kind = Literal["requests", "tokens", "in_flight", "budget"]


_SOON = 1.0  # seconds


class Running(NamedTuple):
    """A call that runs: when it is expected to end, and what it holds of a meter."""

    ends: float
    held: int


@dataclass(slots=True)
class Meter:
    """`share` is what this server may use of the limit; None: all of it.

    Of a budget it is what may be used beyond `spent`.
    """

    kind: Kind
    limit: int
    share: int | None = None
    is_heard: bool = False  # whether a round has said what `share` is
    elsewhere: int = 0  # used on other servers, as last heard
    began: datetime | None = None  # of a budget: its period
    ends: float = 0.0  # of a budget: when the next period begins, in the clock of `now`
    spent: int = 0  # of a budget: what the usage table has for this period
    held: int = 0
    counted: int = 0  # of a budget: since `spent` was read
    demand: float = 0.0
    short: int = 0
    window: SlidingWindow = field(default_factory=SlidingWindow)

    def used(self, now: float) -> int:
        """What calls on this server have used and hold."""
        if self.kind == "budget":
            return self.held + self.counted
        return self.held + self.window.total(now)

    def remaining(self, now: float) -> int:
        """Of the whole limit, as far as this server knows."""
        return max(self.limit - self.spent - self.elsewhere - self.used(now), 0)

    def has_room(self, amount: int, now: float) -> bool:
        """Whether this server may admit so much now."""
        used = self.used(now) + amount
        if self.share is not None and used > self.share:
            return False
        return used + self.spent <= self.limit

    def is_short(self, amount: int, now: float) -> bool:
        """Whether the limit has room that this server's share lacks."""
        return not self.has_room(amount, now) and self.remaining(now) >= amount

    def take(self, amount: int, now: float) -> Entry:
        """Count at once, as a request; returns a mark for `give_back`."""
        self.demand += amount
        return self.window.add(amount, now)

    def give_back(self, amount: int, mark: Entry) -> None:
        self.window.take_back(amount, mark)

    def hold(self, amount: int) -> None:
        """Reserve for a call that runs."""
        self.demand += amount
        self.held += amount

    def release(self, amount: int) -> None:
        self.held -= amount

    def count(self, amount: int, now: float) -> None:
        """So much has been used, of what is held or beyond it."""
        if self.kind == "budget":
            self.counted += amount
        else:
            self.window.add(amount, now)

    def room_at(self, amount: int, now: float, running: Iterable[Running]) -> float:
        """When there will be room for an amount that fits the limit, if nobody else takes it."""
        if self.kind == "budget":
            return self.ends
        lacking = self.used(now) + self.elsewhere + amount - self.limit
        if lacking <= 0:  # it is this server's share that lacks
            return now + _SOON
        ending = sorted((each.ends + self._lasts, each.held) for each in running)
        for moment, each in merge(self.window.leaving(), ending):
            lacking -= each
            if lacking <= 0:
                return max(moment, now)
        # Other servers use it: by then all that they have used has left, or a call may have ended.
        return now + (_SOON if self.kind == "in_flight" else WINDOW_SECONDS)

    def empty_at(self, now: float, last_ends: float) -> float:
        """When nothing of it will be used, if no other call comes and the last one ends then."""
        if self.kind == "budget":
            return self.ends
        if not self.used(now):
            return now
        return max(now, self.window.empty_at, last_ends + self._lasts if self.held else 0.0)

    @property
    def _lasts(self) -> float:
        """How long what a call has used counts after its end, at most, in seconds."""
        return WINDOW_SECONDS if self.kind == "tokens" else 0.0


def divide(limit: int, own: Stake, others: Iterable[Stake]) -> int:
    """The share of a server whose stake is `own`; `limit` is what is left of a budget.

    What nobody uses goes to those that lack room first, the least user before others, then to each
    by its demand. A share is never less than what is used, and never takes what others have: all
    shares together never pass the limit, in whatever order servers ask.
    """
    rest = list(others)
    stakes = [own, *rest]
    spare = limit - sum(each.used for each in stakes)
    target = own.used
    for each in sorted((each for each in stakes if each.short), key=lambda each: each.used):
        given = min(each.short, max(spare, 0))
        spare -= given
        target += given if each is own else 0
    is_lacking = any(each.short for each in stakes)
    demand = sum(each.demand for each in stakes)
    # So that the first call of a quiet server need not wait, unless another lacks room.
    floor = 0.0 if is_lacking and demand else max(demand / 10, 1.0)
    if spare > 0:
        weight = sum(each.demand + floor for each in stakes)
        target += int(spare * (own.demand + floor) / weight)
    taken = sum(each.share for each in rest)
    return max(min(target, limit - taken), own.used)

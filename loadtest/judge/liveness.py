"""Which version an adapter's bare name may have meant at a time, by the actions that were taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from loadtest.results import Done

FIRST_VERSION = 1


class Liveness:
    """`initial`: the version that each name meant before all actions; 1 where it isn't said.

    A move happens at a moment between its action's beginning and end, which nobody outside of the
    server knows. One that failed without a clear answer may have happened, then or never.
    """

    def __init__(self, initial: Mapping[str, int], actions: Iterable[Done] = ()) -> None:
        self._initial = initial
        self._moves: dict[str, list[Done]] = {}
        for action in sorted(actions, key=lambda each: each.began):
            if action.stable is not None:
                self._moves.setdefault(action.adapter, []).append(action)

    def may_mean(self, adapter: str, since: float, until: float) -> set[int] | None:
        """The versions that it may have meant at a moment from `since` to `until`; None: any."""
        begins, version = -math.inf, self._initial.get(adapter, FIRST_VERSION)
        found: set[int] = set()
        moves = self._moves.get(adapter, [])
        for at in range(len(moves) + 1):
            if begins <= until and since <= _end(moves[at:]):
                found.add(version)
            if at < len(moves):
                begins, version = moves[at].began, moves[at].stable or 0
        return None if 0 in found else found


def _end(later: list[Done]) -> float:
    """Until when a version may be meant: the end of the first move that surely happened."""
    return next((move.ended for move in later if not move.failure), math.inf)

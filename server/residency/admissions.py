"""Turns in the queue for a place: one for each version, as long as anybody waits for it.

All who ask for a version share its turn, or the later ones would wait behind strangers for what is
there by then. When the last of them has hung up, nobody has to leave for it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class _Turn:
    task: asyncio.Task[None]
    waiting: int = 0


class Admissions:
    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}

    def get(self, key: Hashable) -> asyncio.Task[None] | None:
        turn = self._turns.get(key)
        return turn.task if turn else None

    async def wait(self, key: Hashable, admit: Callable[[], Coroutine[None, None, None]]) -> None:
        """Until `admit` has run, which is begun for the first; raises what it raises."""
        turn = self._turns.get(key)
        if turn is None or turn.task.done():
            turn = self._turns[key] = _Turn(asyncio.create_task(admit()))
            # Should the last who wait hang up just when it fails, nobody asks for its error.
            turn.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        turn.waiting += 1
        try:
            await asyncio.shield(turn.task)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                turn.task.cancel()
            if (turn.task.done() or not turn.waiting) and self._turns.get(key) is turn:
                del self._turns[key]

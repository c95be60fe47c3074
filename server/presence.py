"""Whether the engine can be asked now; who needs it waits here while it is started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.engine.interface import EngineGone


class Presence:
    """There from the beginning, until `leave`; after `end` for good away.

    `on_leave` is called at once when the engine ends, before anything can ask the dead one.
    """

    def __init__(self) -> None:
        self.on_leave: Callable[[], None] = lambda: None
        self._changed = asyncio.Event()
        self._changed.set()
        self._is_over = False

    @property
    def is_there(self) -> bool:
        return self._changed.is_set() and not self._is_over

    @property
    def is_over(self) -> bool:
        """Whether the engine has ended for good."""
        return self._is_over

    def leave(self) -> None:
        """The engine has ended; it may come back."""
        if not self._is_over:
            self._changed.clear()
            self.on_leave()

    def come_back(self) -> None:
        """The engine can be asked again."""
        self._changed.set()

    def end(self) -> None:
        """The engine does not come back: `wait` raises from now on."""
        self._is_over = True
        self._changed.set()

    async def wait(self) -> None:
        """Return once the engine can be asked; raises EngineGone if it never will."""
        await self._changed.wait()
        if self._is_over:
            raise EngineGone("the engine ended")

"""Starts the engine again when its process has ended, so that its death is a pause for callers.

HTTP stays up meanwhile, and calls wait (server/engine/client.py). An engine that ends again and
again is given up: then the server ends, and whatever supervises it takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import Any, Protocol

from adapters.catalog import AdapterVersion
from server.engine.interface import Admission, Death
from server.errors import EngineStartFailed
from server.lifecycle import RESTARTING, Lifecycle, Phase
from server.presence import Presence
from server.residency.residency import Residency
from server.suspects import Suspects

logger = logging.getLogger("lorry.supervisor")

_STEADY_SECONDS = 5  # an engine that lived this long is started again at once
_LONGEST_PAUSE_SECONDS = 30
_RESTORE_SECONDS = 5.0  # for adapters that were resident, ahead of calls
_SIGNAL_SECONDS = 0.3  # for a signal that has ended the engine to arrive here too


class RestartableEngine(Protocol):
    @property
    def death(self) -> asyncio.Future[None]:
        """Ends when the engine's process does; another one after each restart."""

    async def autopsy(self) -> Death:
        """How the engine has ended."""

    async def restart(self) -> None:
        """Start a process in the place of the one that has ended; raises EngineStartFailed."""

    async def abandon(self, restart: asyncio.Task[Any]) -> None:
        """End a restart under way."""


class Supervisor:
    """Restarts `engine` up to `most` times within `window` seconds; the next death is the last."""

    def __init__(
        self,
        engine: RestartableEngine,
        residency: Residency,
        admission: Admission,
        lifecycle: Lifecycle,
        presence: Presence,
        suspects: Suspects,
        *,
        most: int,
        window: float,
    ) -> None:
        self.restarts = 0
        self._engine = engine
        self._residency = residency
        self._admission = admission
        self._lifecycle = lifecycle
        self._presence = presence
        self._suspects = suspects
        self._most = most
        self._window = window
        self._deaths: deque[float] = deque()  # monotonic, within the window
        self._quick = 0  # deaths in a row, each soon after a start
        self._began = time.monotonic()  # of the engine that lives, or lived last
        self._held: dict[Any, AdapterVersion] = {}  # what to load again, in this order
        self._restart: asyncio.Task[None] | None = None
        presence.on_leave = self._forget

    async def run(self) -> None:
        """Restart the engine whenever it ends; returns when that is given up."""
        while True:
            await asyncio.wait({self._engine.death})
            if not await self._outlive(await self._engine.autopsy()):
                return

    async def close(self) -> None:
        """End a restart under way; `run` must have been cancelled."""
        if self._restart is not None:
            await self._engine.abandon(self._restart)
            with contextlib.suppress(Exception):
                await self._restart

    def _forget(self) -> None:
        """What the engine held can't be used any more, and nobody may enter it."""
        self._lifecycle.impair(RESTARTING, "the engine has ended and is started again")
        held = self._residency.forget()
        self._held = {each.key: each for each in (*held, *self._held.values())}
        self._admission.engine_lost()

    async def _outlive(self, death: Death) -> bool:
        """Returns whether the engine is there again."""
        if not self._lifecycle.in_flight:
            await asyncio.sleep(_SIGNAL_SECONDS)
            if self._lifecycle.phase is Phase.DRAINING:
                return False
        logger.error("the engine has ended: %s", death.cause)
        if not death.from_outside:
            self._suspects.blame(death.inside)
        is_quick = time.monotonic() - self._began < _STEADY_SECONDS
        self._quick = self._quick + 1 if is_quick else 0
        while self._may_restart():
            await asyncio.sleep(self._pause())
            if await self._start_again():
                return True
            self._quick += 1
        self._presence.end()
        self._admission.engine_ended()
        return False

    def _may_restart(self) -> bool:
        """Count a death; returns whether it is not yet one too many."""
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - self._window:
            self._deaths.popleft()
        if len(self._deaths) <= self._most:
            return True
        logger.error(
            "the engine has ended %d times within %.0f minutes: it is not started again",
            *(len(self._deaths), self._window / 60),
        )
        return False

    def _pause(self) -> float:
        """Seconds before a restart: 0, 1, 2, 4 ..."""
        return min(2.0 ** (self._quick - 1), _LONGEST_PAUSE_SECONDS) if self._quick else 0.0

    async def _start_again(self) -> bool:
        """Start a process and load what was resident; then calls may go on."""
        began = time.monotonic()
        self.restarts += 1
        self._restart = asyncio.create_task(self._engine.restart())
        try:
            await asyncio.shield(self._restart)
        except EngineStartFailed as error:
            logger.error("%s", error)
            return False
        self._began = time.monotonic()
        await self._residency.restore([*self._held.values()], _RESTORE_SECONDS)
        if not self._engine.death.done():  # else its death follows at once
            self._held = {}
            self._presence.come_back()
            self._admission.engine_back()
            self._lifecycle.restore(RESTARTING)
            took = time.monotonic() - began
            logger.warning("the engine is back, after %.1f s (restart %d)", took, self.restarts)
        return True

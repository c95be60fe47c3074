"""The server's phase, the engine behind it, and the number of calls in flight.

starting -> ready -> draining, and from each of them -> dead when the engine ends for good. Calls
are accepted only in `ready`. A hindrance makes a ready server unready for balancers (/readyz);
calls that still arrive are accepted unless it says otherwise. Other modules report events; nothing
here observes HTTP or the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from starlette.types import ASGIApp

from server.engine.interface import Admission
from server.errors import Unavailable
from server.residency.residency import Residency


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


RESTARTING = "restarting"  # a hindrance: calls that arrive wait for the engine

_REFUSALS = {
    Phase.STARTING: ("The server is starting.", "starting", 5),
    Phase.DRAINING: ("The server is shutting down.", "draining", 5),
    Phase.DEAD: ("The engine has stopped; the server is shutting down.", "engine_dead", 10),
}


@dataclass(frozen=True, slots=True)
class Attached:
    """An engine in use: vLLM's app on it, its adapters, and the order in which calls enter it."""

    app: ASGIApp
    residency: Residency
    admission: Admission
    max_sequences: int  # that the engine works on at once


class Lifecycle:
    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.stage = "starting"  # of the start, for people
        self.in_flight = 0
        self.hindrances: dict[str, str] = {}  # reason (a stable code) -> words
        self._refusing: dict[str, int] = {}  # those that refuse calls -> Retry-After, seconds
        self._engine: Attached | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_up(self) -> bool:
        """Whether there is an engine that answers calls."""
        is_away = self._refusing or RESTARTING in self.hindrances
        return self.phase in (Phase.READY, Phase.DRAINING) and not is_away

    def attach(self, engine: Attached) -> None:
        """Take an engine into use: calls are accepted."""
        self._engine = engine
        self.advance(Phase.READY)

    def engine(self) -> Attached:
        """Raises Unavailable while the server starts."""
        if self._engine is None:
            raise refusal(Phase.STARTING)
        return self._engine

    @property
    def residency(self) -> Residency | None:
        return self._engine.residency if self._engine is not None else None

    @property
    def capacity(self) -> int:
        """Sequences that the engine works on at once; 0 while there is none."""
        return self._engine.max_sequences if self._engine is not None else 0

    def advance(self, phase: Phase) -> None:
        """Enter a phase; DEAD is final."""
        if self.phase is not Phase.DEAD:
            self.phase = phase
            self.stage = phase.value

    @property
    def status(self) -> str:
        """In one word, for /readyz: the phase, `restarting`, or `impaired` by what else hinders."""
        if self.phase is not Phase.READY or not self.hindrances:
            return self.phase
        return RESTARTING if RESTARTING in self.hindrances else "impaired"

    @property
    def is_ready(self) -> bool:
        """Whether a balancer should send calls here: the phase is `ready`, and nothing hinders."""
        return self.phase is Phase.READY and not self.hindrances

    def impair(self, reason: str, words: str, refuse_for: int | None = None) -> None:
        """Make the server unready until `restore(reason)`; `reason` is a stable code.

        With `refuse_for`, calls meanwhile are refused with `reason` and this Retry-After (seconds).
        """
        self.hindrances[reason] = words
        if refuse_for is not None:
            self._refusing[reason] = refuse_for

    def restore(self, reason: str) -> None:
        """The reason is gone; it need not have been there."""
        self.hindrances.pop(reason, None)
        self._refusing.pop(reason, None)

    def check_ready(self) -> None:
        """Raises Unavailable: the phase is not `ready`, or a hindrance refuses calls."""
        if self.phase is not Phase.READY:
            raise refusal(self.phase)
        for reason, seconds in self._refusing.items():
            words = self.hindrances[reason]
            raise Unavailable(
                f"The server can't answer now: {words}.", code=reason, retry_after=seconds
            )

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one call as in flight for the length of the block.

        Raises:
            Unavailable: the server is not ready.
        """
        self.check_ready()
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def wait_idle(self, within: float) -> bool:
        """Wait until no call is in flight; returns False after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


def refusal(phase: Phase) -> Unavailable:
    """The error of calls in a phase that accepts none."""
    message, code, retry_after = _REFUSALS[phase]
    return Unavailable(message, code=code, retry_after=retry_after)

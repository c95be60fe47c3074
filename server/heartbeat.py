"""Detects an engine that lives but does not answer: a stopped process, a step that hangs.

A cheap question goes to the engine every few seconds, whether calls run or not, so readiness does
not depend on traffic. The engine's own loop answers it between two steps. An adapter that loads or
a grammar that compiles beside the steps does not delay the answer, and before the first question
the engine has compiled its model. An engine that is silent for very long is killed, so that it is
started again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from server.engine.interface import AdapterEngine, EngineGone
from server.lifecycle import Lifecycle

logger = logging.getLogger("lorry.heartbeat")

STALLED = "engine_stalled"
_RETRY_SECONDS = 5
_QUESTIONS = 5  # within the limit
_SLACK_SECONDS = 0.5  # to read an answer: this process may have been stopped meanwhile, too


class Heartbeat:
    """Makes the server unready, and refuse calls, from `limit` seconds of silence to an answer.

    After `most` seconds of silence it kills the engine.
    """

    def __init__(
        self, engine: AdapterEngine, lifecycle: Lifecycle, limit: float, most: float
    ) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._limit = limit
        self._most = most
        self._asked: float | None = None  # monotonic, while a question is open

    @property
    def silent_seconds(self) -> float:
        """How long the engine has owed an answer; 0 when it owes none."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked

    async def run(self) -> None:
        """Ask until cancelled; an engine that has ended owes no answer."""
        while True:
            await asyncio.sleep(self._limit / _QUESTIONS)
            with suppress(EngineGone):
                await self._ask()

    async def _ask(self) -> None:
        self._asked = time.monotonic()
        answer = asyncio.ensure_future(self._engine.ping())
        try:
            if await _comes(answer, self._limit):
                answer.result()
            else:
                await self._outlast(answer)
        finally:
            answer.cancel()
            self._asked = None

    async def _outlast(self, answer: asyncio.Future[None]) -> None:
        logger.error(
            "the engine has not answered for %.1f s: its process is stopped, or a step takes this "
            "long. Calls get 503 %s until it answers.",
            self.silent_seconds,
            STALLED,
        )
        words = f"the engine has not answered for {self._limit:g} s"
        self._lifecycle.impair(STALLED, words, refuse_for=_RETRY_SECONDS)
        try:
            if not await _comes(answer, self._most - self.silent_seconds):
                logger.error("the engine is killed after %.1f s of silence", self.silent_seconds)
                self._engine.kill()
            await answer
            logger.warning("the engine answers again, after %.1f s", self.silent_seconds)
        finally:
            self._lifecycle.restore(STALLED)


async def _comes(answer: asyncio.Future[None], within: float) -> bool:
    done, _ = await asyncio.wait({answer}, timeout=within)
    return bool(done or (await asyncio.wait({answer}, timeout=_SLACK_SECONDS))[0])

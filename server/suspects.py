"""Finds the request that ends the engine among all that were inside when it ended.

A death proves nothing about a request that others were inside with. One that was inside at two
deaths is a suspect: it runs alone next time, and the others wait. If the engine ends then too, it
is poison, and its body is refused from then on; if not, it is cleared. Requests are known by the
digest of their body, so that a caller who sends it again gets no third try.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from server.call import Call
from server.errors import PoisonRequest

logger = logging.getLogger("lorry.suspects")

_DEATHS = 2  # after which a request runs alone, and is poison if it did
_MOST = 1024  # digests remembered of each kind, the latest ones
_REFUSED_SECONDS = 3600


class Suspects:
    def __init__(self) -> None:
        self._deaths: OrderedDict[str, int] = OrderedDict()  # digest -> with it inside, so far
        self._poison: OrderedDict[str, float] = OrderedDict()  # digest -> monotonic, refused until
        self._asked: Counter[str] = Counter()  # digest -> requests that are inside or wait
        self._inside = 0
        self._is_alone = False  # whether the one that is inside is a suspect
        self._waiting: deque[object] = deque()  # suspects, in their order
        self._changed = asyncio.Event()

    def check(self, digest: str) -> None:
        """Raises PoisonRequest: the engine has ended twice because of this body."""
        if self._poison.get(digest, 0.0) > time.monotonic():
            raise PoisonRequest(
                "This request was running each time that the engine ended, at last alone: it is "
                f"refused for {_REFUSED_SECONDS // 60} minutes. Change it, or report it to the "
                "operator, whose log has the cause."
            )

    @asynccontextmanager
    async def inside(self, digest: str) -> AsyncIterator[None]:
        """The request is in the engine for the length of the block, a suspect alone.

        Raises PoisonRequest, also after a wait.
        """
        self._asked[digest] += 1
        try:
            await self._enter(digest)
            try:
                self.check(digest)
                yield
            finally:
                self._inside -= 1
                self._is_alone = False
                self._changed.set()
            if self._asked[digest] == 1:  # its other prompts have passed too
                self._deaths.pop(digest, None)
        finally:
            self._asked[digest] -= 1
            if not self._asked[digest]:
                del self._asked[digest]

    async def _enter(self, digest: str) -> None:
        if self._deaths.get(digest, 0) >= _DEATHS:
            await self._enter_alone()
            return
        while self._is_alone or self._waiting:
            await self._change()
        self._inside += 1

    async def _enter_alone(self) -> None:
        turn = object()
        self._waiting.append(turn)
        try:
            while self._inside or self._waiting[0] is not turn:
                await self._change()
            self._inside += 1
            self._is_alone = True
        finally:
            self._waiting.remove(turn)
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def blame(self, calls: Collection[Call]) -> None:
        """The engine has ended, not from outside, with these calls inside."""
        inside = {call.digest: call for call in calls}
        for digest in inside:
            self._deaths[digest] = self._deaths.pop(digest, 0) + 1
        while len(self._deaths) > _MOST:
            self._deaths.popitem(last=False)
        if len(inside) == 1:
            ((digest, call),) = inside.items()
            if self._deaths[digest] >= _DEATHS:
                self._refuse(digest, call)

    def _refuse(self, digest: str, call: Call) -> None:
        deaths = self._deaths[digest]
        self._deaths.clear()  # it explains the deaths that the others were inside at
        self._poison[digest] = time.monotonic() + _REFUSED_SECONDS
        while len(self._poison) > _MOST:
            self._poison.popitem(last=False)
        logger.error(
            "the request %s to %s (body sha256:%s) was inside at %d deaths of the engine, alone at "
            "the last one: it gets 422 poison_request, and its body for %d minutes",
            *(call.request_id, call.response_model, digest, deaths, _REFUSED_SECONDS // 60),
        )

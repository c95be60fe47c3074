"""Places that callers take in turn: one with many requests waits behind its own."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import Unavailable


class Turns:
    """`places` are held at once; at most `each` requests of a caller, and `most` in all, wait."""

    def __init__(self, places: int, *, code: str, each: int = 32, most: int = 256) -> None:
        self._free = places
        self._code = code
        self._each = each
        self._most = most
        # The caller whose turn is next comes first; none has an empty queue.
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def take(self, caller: str) -> AsyncIterator[None]:
        """Hold a place for the length of the block.

        Raises:
            Unavailable: too many requests wait; also later, to make room for a caller with fewer.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait(caller)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, caller: str) -> None:
        own = len(self._queues.get(caller, ()))
        if own >= self._each or (self.waiting >= self._most and not self._make_room(own)):
            raise self._full()
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # it had its turn just now
            else:
                self._leave(caller, turn)
            raise

    def _full(self) -> Unavailable:
        message = "Too many requests like this one wait already."
        return Unavailable(message, code=self._code, retry_after=1)

    def _make_room(self, own: int) -> bool:
        """Refuse the last request of the longest queue, if that is longer than the caller's own."""
        longest = max(self._queues.values(), key=len)
        if len(longest) <= own + 1:
            return False
        if not (last := longest.pop()).done():
            last.set_exception(self._full())
        return True

    def _leave(self, caller: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(caller)
        if queue is None or turn not in queue:
            return  # `_release` has passed over it
        queue.remove(turn)
        if not queue:
            del self._queues[caller]

    def _release(self) -> None:
        while self._queues:
            caller, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[caller] = queue  # at the end: the others come first
            if not turn.cancelled():  # else it leaves, but has not run since
                turn.set_result(None)
                return
        self._free += 1

"""The end of a call before its answer: at the time that its caller gives it, `x-request-timeout`,
or when its key lapses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from server.call import Call
from server.errors import DeadlineExceeded, InvalidRequest, RequestError

HEADER = "x-request-timeout"
_MOST_SECONDS = 86_400
_NUMBER = re.compile(r"[0-9]{1,5}(\.[0-9]{1,9})?")


class Deadline:
    """To those who wait for the caller's messages, its end is the caller's hanging up: they stop.

    `until` then answers the caller, who is still there.
    """

    def __init__(self, headers: Headers, receive: Receive) -> None:
        """Raises InvalidRequest for a header that is not a number of seconds."""
        self._receive = receive
        self._seconds = _read_seconds(headers)
        self._at = asyncio.get_running_loop().time() + self._seconds if self._seconds else None
        self._has_passed = False
        self._cut: RequestError | None = None
        self._waits: set[asyncio.Timeout] = set()

    async def receive(self) -> Message:
        """The caller's next message; `http.disconnect` once the deadline has passed."""
        if self._has_passed:
            return {"type": "http.disconnect"}
        wait = asyncio.timeout_at(self._at)
        try:
            async with wait:
                self._waits.add(wait)
                return await self._receive()
        except TimeoutError:
            if not wait.expired():
                raise  # another's
            self._has_passed = True
            return {"type": "http.disconnect"}
        finally:
            self._waits.discard(wait)

    def cut(self, error: RequestError) -> None:
        """End the call now, as at its deadline, but with this error."""
        self._cut = self._cut or error
        self._has_passed = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())

    @contextmanager
    def until(self, call: Call) -> Iterator[None]:
        """Raises DeadlineExceeded if the block ended without an answer because of it."""
        try:
            yield
        except Exception:
            self._check(call)
            raise
        self._check(call)

    def _check(self, call: Call) -> None:
        if not self._has_passed or call.response_complete:
            return
        if self._cut is not None:
            raise self._cut
        raise DeadlineExceeded(
            f"The answer was not complete within the {self._seconds:g} seconds that the "
            f"request allowed ({HEADER})."
        )


def _read_seconds(headers: Headers) -> float | None:
    given = headers.getlist(HEADER)
    if not given:
        return None
    seconds = float(given[0]) if _NUMBER.fullmatch(given[0]) else 0.0
    if len(given) > 1 or not 0 < seconds <= _MOST_SECONDS:
        raise InvalidRequest(
            f"The header `{HEADER}` must be one number of seconds above 0 and at most "
            f"{_MOST_SECONDS}, such as 30 or 2.5.",
            param=HEADER,
        )
    return seconds

"""Request bodies, bounded in size and time, and all that arrive at once in their sum."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Receive

from server.disconnects import Disconnected
from server.errors import RequestTooLarge, RequestTooSlow, Unavailable
from server.http.exchange import SILENCE_SECONDS


class Bodies:
    """Reads bodies of at most `max_bytes` each, within `seconds`, and `max_sum` bytes together."""

    def __init__(self, *, max_bytes: int, max_sum: int, seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_sum = max_sum
        self._seconds = seconds
        self._arriving: set[_Arriving] = set()
        self._held = 0  # bytes

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """One request's body.

        Raises:
            RequestTooLarge: it is, or is announced to be, longer than `max_bytes`.
            RequestTooSlow: no part of it arrived for SILENCE_SECONDS, or it took too long.
            Unavailable: it was the largest of those that hold more than `max_sum` together.
            Disconnected: the caller hung up.
        """
        check_announced(headers, self._max_bytes)
        body = _Arriving()
        self._arriving.add(body)
        try:
            async with asyncio.timeout(None) as body.timeout:
                return await self._read(body, receive)
        except TimeoutError:
            if body.is_stopped:
                raise self._full() from None
            raise RequestTooSlow(
                f"No part of the request body arrived for {SILENCE_SECONDS} seconds, or all of it "
                f"took longer than {self._seconds:g}."
            ) from None
        finally:
            self._arriving.discard(body)
            self._held -= body.size

    async def _read(self, body: _Arriving, receive: Receive) -> bytes:
        now = asyncio.get_running_loop().time
        parts: list[bytes] = []
        total, deadline = 0, now() + self._seconds
        while not body.is_stopped:
            body.timeout.reschedule(min(now() + SILENCE_SECONDS, deadline))
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            part = message.get("body", b"")
            total += len(part)
            if total > self._max_bytes:
                raise _too_large(self._max_bytes)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
            body.size += len(part)
            self._held += len(part)
            if self._held > self._max_sum:
                self._stop_largest()
        raise self._full()

    def _stop_largest(self) -> None:
        """Those who send little are not the ones to suffer."""
        body = max(self._arriving, key=lambda each: each.size)
        body.is_stopped = True
        self._held -= body.size
        body.size = 0
        if not body.timeout.expired():
            body.timeout.reschedule(asyncio.get_running_loop().time())

    def _full(self) -> Unavailable:
        return Unavailable(
            f"The request bodies that arrive now are larger than {self._max_sum} bytes together. "
            "Try again later.",
            code="too_many_bodies",
            retry_after=1,
        )


class _Arriving:
    timeout: asyncio.Timeout

    def __init__(self) -> None:
        self.size = 0  # bytes that are held
        self.is_stopped = False


def check_announced(headers: Headers, limit: int) -> None:
    """Raises RequestTooLarge for an announced length above `limit`, before any byte is read."""
    announced = headers.get("content-length", "")
    if announced.isdecimal():
        digits = announced.lstrip("0") or "0"
        if len(digits) > len(str(limit)) or int(digits) > limit:
            raise _too_large(limit)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limit} bytes.")

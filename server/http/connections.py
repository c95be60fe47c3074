"""How many connections a server holds, which of them gives way to a new one, and how it accepts.

protocol.py has what holds for each of them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from server.http.protocol import Connection, refuse_call
from server.telemetry.logs import RateLimit

logger = logging.getLogger("lorry.connections")
_full, _out_of_descriptors, _invalid = map(logger.getChild, ("full", "descriptors", "invalid"))

ACCEPTED_AT_ONCE = 16  # connections, before those that are open get their turn
SPARE_CONNECTIONS = 32  # beyond the limit: for probes, and for a 503 to the others
MAX_UNREAD_BYTES = 256 * 1024**2  # of answers that wait for their readers
_UPLOAD_SECONDS = 5  # for which an unfinished body is safe from being closed for another call
_QUEUED_CONNECTIONS = 4096  # by the kernel, until they are accepted
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_FAILED = "socket.accept() out of system resource"  # asyncio.selector_events


@dataclass(frozen=True)
class Limits:
    connections: int
    head_seconds: float
    keep_alive_seconds: float


class Connections:
    """All connections of a server; as uvicorn's `http` it makes the protocol of each.

    At the limit the connection that has been idle longest is closed for a new one. A connection
    without a request in progress is idle, whether it has sent nothing, half a head, or waits for
    the next request.
    """

    def __init__(self, limits: Limits, refusing: ASGIApp = refuse_call) -> None:
        self.limits = limits
        self.refusing = refusing  # answers calls beyond the limit
        self._idle: dict[Connection, None] = {}  # the longest idle first
        self._calls: set[Connection] = set()
        self._uploading: dict[Connection, float] = {}  # calls without all of their body, since when
        self._unread: set[Connection] = set()  # their answer waits for its reader
        for each in (_full, _out_of_descriptors, _invalid):
            each.filters[:] = [RateLimit(lines=1, by_place=False)]

    def __call__(self, **given: Any) -> Connection:
        return Connection(self, **given)

    def add(self, connection: Connection) -> None:
        self._idle[connection] = None
        if len(self._idle) + len(self._calls) > self.limits.connections + SPARE_CONNECTIONS:
            _full.warning(
                "max_connections (%d) is reached: the connection that has been idle longest is "
                "closed for each new one",
                self.limits.connections,
            )
            self._close_idle()

    def admit(self, connection: Connection, is_probe: bool) -> bool:
        """Begin a call; false if there are as many as connections are allowed."""
        if connection in self._calls:
            return True
        is_full = len(self._calls) >= self.limits.connections and not is_probe
        now = connection.loop.time()
        if is_full and not self._close_upload(now - _UPLOAD_SECONDS):
            _full.warning(
                "calls are refused: max_connections (%d) are in progress", self.limits.connections
            )
            return False
        self._idle.pop(connection, None)
        self._calls.add(connection)
        self._uploading[connection] = now
        return True

    def received(self, connection: Connection) -> None:
        """The request of the call has arrived in full."""
        self._uploading.pop(connection, None)

    def rest(self, connection: Connection) -> None:
        """The call has been answered."""
        if connection in self._calls:
            self._calls.discard(connection)
            self._uploading.pop(connection, None)
            self._idle[connection] = None

    def remove(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._calls.discard(connection)
        self._uploading.pop(connection, None)
        self._unread.discard(connection)

    def block(self, connection: Connection) -> None:
        """The reader of an answer is slow; beyond MAX_UNREAD_BYTES the largest answer is cut."""
        self._unread.add(connection)
        while sum(each.unread_bytes for each in self._unread) > MAX_UNREAD_BYTES:
            largest = max(self._unread, key=lambda each: each.unread_bytes)
            self._unread.discard(largest)
            largest.drop()

    def unblock(self, connection: Connection) -> None:
        self._unread.discard(connection)

    def on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop's exception handler: makes room when a connection can't be accepted.

        asyncio itself logs a traceback each time; it pauses for a second, and accepts again.
        """
        if context.get("message") != _ACCEPT_FAILED:
            loop.default_exception_handler(context)
            return
        _out_of_descriptors.error(
            "a connection can't be accepted: %s; idle ones are closed. Raise the limit of file "
            "descriptors, or lower max_connections (%d).",
            context.get("exception"),
            self.limits.connections,
        )
        for _ in range(ACCEPTED_AT_ONCE):
            self._close_idle()

    def _close_idle(self) -> None:
        if (longest := next(iter(self._idle), None)) is not None:
            self._close(longest)

    def _close_upload(self, before: float) -> bool:
        longest, since = next(iter(self._uploading.items()), (None, 0.0))
        if longest is None or since > before:
            return False
        self._close(longest)
        return True

    def _close(self, connection: Connection) -> None:
        self.remove(connection)
        connection.drop()


class Listener(socket.socket):
    """A listening socket from which asyncio accepts ACCEPTED_AT_ONCE connections at a time.

    asyncio takes uvicorn's `backlog` for the length of the kernel's queue and for the number that
    it accepts in a row, and goes on in that row after descriptors have run out.
    """

    _has_failed = False

    def listen(self, backlog: int = 0, /) -> None:
        del backlog
        super().listen(_QUEUED_CONNECTIONS)

    def accept(self) -> tuple[socket.socket, Any]:
        if self._has_failed:
            self._has_failed = False
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            self._has_failed = error.errno in _OUT_OF_RESOURCES
            raise

"""One connection, bounded in the size of heads and in time, on uvicorn's parser.

uvicorn's parser on httptools sets no limit to heads, trailers, pipelined requests, the time that a
head may take, or the time that an answer may wait for its reader, and handles them before any code
of ours runs. (Its parser on h11 bounds heads only, and is slower.)
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
from typing import TYPE_CHECKING, Any, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from server.errors import (
    HeadTooLarge,
    InvalidRequest,
    RequestError,
    RequestTooLarge,
    RequestTooSlow,
    Unavailable,
)

if TYPE_CHECKING:
    from server.http.connections import Connections

logger = logging.getLogger("lorry.connections.invalid")

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
MAX_PIPELINED = 16  # requests of one connection that wait for the one before them
STALL_SECONDS = 60  # in which a reader takes HIGH_WATER_LIMIT bytes, or what is left
_LINGER_SECONDS = 5  # for the rest of a request that has been answered
_PROBES = frozenset({b"/livez", b"/readyz", b"/health", b"/-/healthz", b"/metrics"})


class _Part(enum.Enum):
    """What of a request is awaited next."""

    BEGIN = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits.

    A connection without a call in progress has one timer: uvicorn's for the next request, or the
    deadline of what has begun to arrive. The tests of this file hold what it relies on in uvicorn.
    """

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._connections = connections
        self.timeout_keep_alive = cast(int, connections.limits.keep_alive_seconds)
        self._running: RequestResponseCycle | None = None  # `cycle` is the last that arrived
        self._awaited = _Part.BEGIN
        self._head_bytes = 0
        self._unparsed = 0  # bytes since the last complete head or piece of a body
        self._refusal: RequestError | None = None  # what a callback of the parser found
        self._is_deaf = False  # nothing that arrives counts any more
        self._is_closing = False
        self._deadline: asyncio.TimerHandle | None = None  # of a head, or of a rest
        self._stall: asyncio.TimerHandle | None = None  # of an answer that nobody reads

    # Begin and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._expect_within(self._connections.limits.head_seconds)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn does so for an orderly end only
        for each in filter(None, (self._running, self.cycle)):
            each.transport = self.transport  # no circle of references is left
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # uvicorn tells `cycle` only
            self._running.message_event.set()
        self._cancel_deadline()
        self._cancel_stall()
        self._connections.remove(self)

    def eof_received(self) -> None:
        # asyncio closes the transport once the answer has been read: here, or never.
        self._limit_unread()

    def drop(self) -> None:
        """Close now, without the answer's unread rest."""
        self._is_deaf = self._is_closing = True
        if self.unread_bytes:
            self.transport.abort()
        else:
            self.transport.close()

    def close(self) -> None:
        """Close once the answer has been read.

        While the caller is still sending, closing would reset the connection and the caller might
        not see the answer: what it sends is discarded, for a while.
        """
        if self._is_closing or self.transport.is_closing():
            return
        self._is_deaf = self._is_closing = True
        self.pipeline.clear()
        self._unset_keepalive_if_required()
        if self._awaited is _Part.BEGIN:
            self.transport.close()
            self._limit_unread()
        else:
            self.flow.resume_reading()
            if self.transport.can_write_eof():  # TLS has no half-closed connections
                self.transport.write_eof()
            self._cancel_deadline()
            self._expect_within(_LINGER_SECONDS)

    # A request arrives

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        self._unparsed += len(data)
        try:
            self._feed(data)
        except HttpParserError as error:
            self._refuse(self._refusal or _refusal_of(error))
            return
        if self._unparsed > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        elif not self._has_call and self.timeout_keep_alive_task is None:
            self._expect_within(self._connections.limits.head_seconds)

    def _feed(self, data: bytes) -> None:
        """Only HTTP/1.1 is spoken here: a request that asks for more is answered as it is.

        The parser skips its body, which would then pass for the next request (Java's client asks
        with each first request). So another parser gets the request without its `Upgrade`.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                line = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
                headers = [b"%s: %s\r\n" % each for each in self.headers if each[0] != b"upgrade"]
                self.parser = _make_parser(self)
                self.parser.feed_data(b"%s %s HTTP/%s\r\n%s\r\n" % (*line, b"".join(headers)))

    def on_message_begin(self) -> None:
        self._awaited, self._head_bytes = _Part.HEAD, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._awaited is not _Part.HEAD:
            return  # a trailer: nothing reads it, and it must not pass for a header
        self._count_head(len(name) + len(value))
        if len(self.headers) == MAX_HEADERS:
            self._stop_parsing(_head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():  # `_feed` begins it again
            if self.parser.get_method() == b"CONNECT":
                self._stop_parsing(InvalidRequest("This server is no proxy."))
            return
        self._awaited, self._unparsed = _Part.BODY, 0
        if len(self.pipeline) == MAX_PIPELINED:
            self._stop_parsing(InvalidRequest("Too many pipelined requests."))
        self._cancel_deadline()
        is_probe = self.url.partition(b"?")[0] in _PROBES
        is_admitted = self._connections.admit(self, is_probe)
        self.app = self.config.loaded_app if is_admitted else self._connections.refusing
        super().on_headers_complete()
        # Its `close` is ours: see there.
        self.cycle.transport = cast(asyncio.Transport, _ClosedBy(self))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._awaited, self._unparsed = _Part.BEGIN, 0
        self._connections.received(self)
        super().on_message_complete()
        if not self._has_call:  # the rest of a request that has been answered
            self._cancel_deadline()
            self._wait_for_next()

    # It is answered

    def on_response_complete(self) -> None:
        if self._is_closing:
            self._connections.rest(self)
            return
        super().on_response_complete()
        if self._has_call:  # the next one, which was pipelined
            return
        self._connections.rest(self)
        if self._awaited is _Part.HEAD:
            self._unset_keepalive_if_required()
            self._expect_within(self._connections.limits.head_seconds)
        elif self._awaited is _Part.BODY:
            self._unset_keepalive_if_required()
            self._expect_within(_LINGER_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit_unread()
        self._connections.block(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_stall()
        self._connections.unblock(self)

    def timeout_keep_alive_handler(self) -> None:
        if self.unread_bytes:  # the answer is not read yet, and has a limit of its own
            self._limit_unread()
            self._wait_for_next()
        else:
            self.drop()

    @property
    def unread_bytes(self) -> int:
        return self.transport.get_write_buffer_size()

    @property
    def _has_call(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: RequestError) -> None:
        """Answer what the parser can't; calls in progress are answered first."""
        if self.transport.is_closing():
            return
        if self._has_call and not self.cycle.more_body:
            self._is_deaf = True
            self.cycle.keep_alive = False  # the last one that arrived in full closes
            return
        if self._has_call:
            if self.cycle.response_started or self.pipeline:
                self.drop()
                return
            self.cycle.disconnected = True  # the answer is ours
            self.cycle.message_event.set()
        if not isinstance(error, RequestTooSlow):
            logger.warning("a request was refused: %s", error)
        self.transport.write(self._render(error))
        self._connections.rest(self)
        self._awaited = _Part.BODY  # whatever comes
        self.close()

    def _render(self, error: RequestError) -> bytes:
        body = json.dumps(error.envelope()).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"%s: %s\r\n" % header for header in headers]
        return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body])

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._stop_parsing(_head_too_large())

    def _stop_parsing(self, error: RequestError) -> None:
        """Raises `error`, of which httptools tells only that there was one."""
        self._refusal = error
        raise error

    # Timers

    def _wait_for_next(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _expect_within(self, seconds: float) -> None:
        """Unless something is awaited already: more of it does not move the deadline."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(seconds, self._miss_deadline)

    def _miss_deadline(self) -> None:
        self._deadline = None
        if self._awaited is _Part.HEAD and not self._is_deaf:
            limit = self._connections.limits.head_seconds
            self._refuse(RequestTooSlow(f"The request's head took longer than {limit:g} seconds."))
        else:
            self.drop()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _limit_unread(self) -> None:
        if self._stall is None and (size := self.unread_bytes):
            self._stall = self.loop.call_later(STALL_SECONDS, self._check_reader, size)

    def _check_reader(self, before: int) -> None:
        self._stall = None
        if self.unread_bytes and before - self.unread_bytes < HIGH_WATER_LIMIT:
            self.drop()
        else:
            self._limit_unread()

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


async def refuse_call(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of calls beyond the limit."""
    error = Unavailable(
        "The server has as many calls in progress as it takes connections. Try again later.",
        code="too_many_connections",
        retry_after=1,
    )
    headers = error.headers() | {"connection": "close"}
    await JSONResponse(error.envelope(), error.status, headers)(scope, receive, send)


class _ClosedBy:
    """The transport that uvicorn's cycle of one request writes to and closes."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.close


def _make_parser(connection: Connection) -> HttpRequestParser:
    parser = HttpRequestParser(connection)
    # As uvicorn does: what follows a request that closes is ignored, and does not spoil its answer.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _refusal_of(error: HttpParserError) -> RequestError:
    if "Content-Length overflow" in str(error):
        return RequestTooLarge("The request body is too large.")
    return InvalidRequest("The request is not valid HTTP/1.1.")


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"The request's head has more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers."
    )

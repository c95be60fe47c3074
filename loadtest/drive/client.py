"""One call over HTTP, from sending it to its record. Whatever fails becomes part of the record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec

from loadtest.drive.answers import CallFailed, Received, join, parse
from loadtest.drive.fetch import read_bounded
from loadtest.plan.plan import Call
from loadtest.records import KEPT_TEXT, Outcome, Record

MAX_ANSWER = 16 * 1024 * 1024  # bytes, some 60,000 events of a stream
# Servers close idle connections after some seconds (uvicorn: 5). The client must close first, or
# some calls are sent into a connection that the server is closing.
_KEEP_ALIVE_SECONDS = 2.0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The server under test."""

    url: str  # without /v1
    urls: dict[str, str] = {}  # by model, for models with a server of their own
    fields: dict[str, dict[str, Any]] = {}  # by model, what the body says besides
    headers: dict[str, str] = {}  # of each call, such as Authorization
    timeout_seconds: float = 120.0  # of a whole call

    def __repr__(self) -> str:  # headers hold secrets
        return f"Target({self.url})"


def open_session() -> aiohttp.ClientSession:
    """Unlimited connections, kept alive; no cookies, because calls are independent."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


async def ask(
    session: aiohttp.ClientSession,
    call: Call,
    body: dict[str, Any],
    path: str,
    model: str,
    scheduled: float,
    target: Target,
) -> Record:
    """Make the call now; `scheduled` is when it was due (seconds, monotonic)."""
    exchange = _Exchange(call)
    payload = msgspec.json.encode(body)
    sent = time.monotonic()
    url = target.urls.get(model, target.url).rstrip("/") + path
    await exchange.run(session, target, url, payload)
    received = exchange.received
    return Record(
        phase=call.phase,
        stream=call.stream,
        number=call.number,
        model=model,
        is_base=call.adapter is None,
        streamed=call.streamed,
        structured=call.structured,
        scheduled=scheduled,
        sent=sent,
        first=received.first,
        last=received.last,
        ended=time.monotonic(),
        gaps=received.gaps,
        outcome=exchange.outcome,
        reason=exchange.reason,
        status=exchange.status,
        prompt_tokens=received.prompt_tokens,
        output_tokens=received.output_tokens or received.pieces,
        answered=_printable(received.answered),
        served=_printable(exchange.headers.get("x-lorry-adapter", "")),
        digest=_printable(exchange.headers.get("x-lorry-adapter-digest", "")),
        trace_id=_trace_id(exchange.headers.get("traceresponse", "")),
        text=received.text,
    )


def _trace_id(traceresponse: str) -> str:
    """W3C: version-trace-span-flags."""
    parts = traceresponse.split("-")
    return parts[1] if len(parts) > 1 else ""


class _Exchange:
    """A request and its outcome so far."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.received = Received()
        self.outcome: Outcome = "ok"
        self.reason = ""
        self.status = 0
        self.headers: dict[str, str] = {}  # names in lower case

    async def run(
        self, session: aiohttp.ClientSession, target: Target, url: str, payload: bytes
    ) -> None:
        try:
            async with session.post(
                url,
                data=payload,
                headers={**target.headers, "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=target.timeout_seconds),
                allow_redirects=False,
            ) as response:
                self.status = response.status
                self.headers = {name.lower(): value for name, value in response.headers.items()}
                await self._read_answer(response)
        except CallFailed as failed:
            self._fail(failed.reason)
        except TimeoutError:  # first, because aiohttp's timeouts are ClientErrors too
            self._fail("timeout")
        except aiohttp.ClientError as error:
            if not self.received.is_done:
                self._fail(self._reason(error))

    def _fail(self, reason: str) -> None:
        self.outcome, self.reason = "failed", reason

    def _reason(self, error: aiohttp.ClientError) -> str:
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL):
            return "connect"
        if isinstance(error, aiohttp.ClientResponseError):
            return "bad_answer"  # not HTTP
        if self.status not in (0, 200):
            return f"http_{self.status}"  # its body is incomplete
        return "stream_broken" if self.status and self._call.streamed else "disconnected"

    async def _read_answer(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise CallFailed(_refusal(response.status, await _read(response)))
        if self._call.streamed:
            await self._read_stream(response)
        else:
            body = await _read(response)
            self.received.take_whole(body, time.monotonic())

    async def _read_stream(self, response: aiohttp.ClientResponse) -> None:
        """Read the body to its end, beyond [DONE], so that the connection can be reused."""
        if response.content_type != "text/event-stream":
            raise CallFailed("bad_answer")
        events, size = Events(), 0
        async for received in response.content.iter_any():
            now = time.monotonic()
            size += len(received)
            if size > MAX_ANSWER:
                raise CallFailed("bad_answer")
            for event in events.feed(received):
                self.received.take_event(event, now)
                if self.received.pieces == self._call.hang_up_after:
                    response.close()
                    self.outcome = "hung_up"
                    return
        self.received.check_ended()


def _printable(text: str) -> str:
    """A server's text, shortened and without control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:KEPT_TEXT])


def _refusal(status: int, body: bytes) -> str:
    try:
        code = parse(body).error_code
    except CallFailed:
        code = ""
    return join("http", str(status), code if code != str(status) else "")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = await read_bounded(response, MAX_ANSWER)
    if body is None:
        raise CallFailed("bad_answer")
    return body


class Events:
    """Parses server-sent events, as far as OpenAI's streams use them, from chunks of any size.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self) -> None:
        self._rest = b""  # an incomplete line
        self._data: list[bytes] = []  # of an incomplete event

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of each event that these bytes complete."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []

"""One HTTP exchange with vLLM's app, seen from outside: the body in, the response out.

`Exchange` hands the body on that bodies.py has read, watches for a caller that hangs up, puts our
headers on the answer and turns vLLM's error bodies into OpenAI's.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import Message, Receive, Send

from server.call import Call
from server.disconnects import Disconnected
from server.errors import RequestError, translate_vllm_error
from server.telemetry.recorder import response_headers

_MOST_HELD = 8  # messages before the engine has taken a request; vLLM's streams begin with three
_STREAMED_ERROR = b'data: {"error"'
_UNNAMED_EVENTS = frozenset({"/v1/chat/completions", "/v1/completions"})  # in their streams
SILENCE_SECONDS = 60  # longest pause in which a caller sends or reads nothing
_OURS = frozenset({b"x-request-id", b"content-length"})


async def send_error(send: Send, call: Call, error: RequestError) -> None:
    """Answer with OpenAI's envelope and our headers."""
    call.status = error.status
    call.error_code = error.code
    body = json.dumps(error.envelope()).encode()
    headers = [
        *response_headers(call),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in error.headers().items()),
    ]
    if error.code == "draining":
        headers.append((b"connection", b"close"))
    if error.status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    call.response_complete = True


async def end_stream(send: Send, call: Call, error: RequestError) -> None:
    """End a stream that has begun with an error event.

    Raises:
        Disconnected: the caller does not read it.
    """
    call.late_status = error.status
    call.error_code = error.code
    if call.endpoint in _UNNAMED_EVENTS:
        event = f"data: {json.dumps(error.envelope())}\n\ndata: [DONE]\n\n"
    else:
        event = f"event: error\ndata: {json.dumps({'type': 'error'} | error.envelope())}\n\n"
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            await send({"type": "http.response.body", "body": event.encode()})
    except TimeoutError:
        raise Disconnected from None
    call.response_complete = True


class Exchange:
    """Hands the body to vLLM's app and its answer to the caller.

    A stream begins with a 200, which vLLM sends before the engine has seen the request. It is held
    back until the first piece after the engine has taken it, so that a refusal has its own status.
    """

    def __init__(self, call: Call, body: bytes, receive: Receive, send: Send) -> None:
        self._call = call
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self._held: list[Message] = []  # the answer so far, until the engine has taken the request
        self._start: Message | None = None  # of an error, held back while its body is collected
        self._error_body = bytearray()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._call.response_complete:
            self._call.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        if self._call.disconnected:
            return  # what vLLM sends for a request that it cancelled
        if self._call.refusal is not None and not self._call.status:
            await send_error(self._send, self._call, self._call.refusal)
        if self._call.response_complete:
            return
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._start = message
            else:
                self._held.append(message)
        elif message["type"] == "http.response.body":
            if self._start is not None:
                await self._collect_error(message)
            else:
                await self._pass_on(message)

    async def _deliver(self, message: Message) -> None:
        """Raises Disconnected when the caller stops reading: it must not hold its lease."""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._send(message)
        except TimeoutError:
            self._call.response_complete = False
            raise Disconnected from None
        except asyncio.CancelledError:
            if not self._call.disconnected:
                raise
            # By Starlette, at the deadline of a caller that does not read. It cancels until the
            # stream has ended: the next time in vLLM's generator, which aborts its request then.
            # Here that would stay open until the garbage is collected.

    async def _pass_on(self, message: Message) -> None:
        body = message.get("body", b"")
        is_last = not message.get("more_body", False)
        if body.startswith(_STREAMED_ERROR):
            if self._held and (status := _status_of_event(body)):
                await self._answer_error(status, body)
                return
            message = {**message, "body": self._translated_event(body)}
        if self._held:
            is_early = not self._call.sequences and len(self._held) <= _MOST_HELD
            if is_early and not is_last:
                self._held.append(message)
                return
            await self._begin()
        if is_last and not self._call.disconnected:
            # Before the send: a caller that has read all of its answer may hang up at once.
            self._call.response_complete = True
        await self._pass_piece(message)

    async def _begin(self) -> None:
        """Send what was held back."""
        start, *pieces = self._held
        self._held = []
        self._call.status = start["status"]
        start["headers"] = [
            *((k, v) for k, v in start.get("headers", []) if k.lower() != b"x-request-id"),
            *response_headers(self._call),
        ]
        await self._deliver(start)
        for piece in pieces:
            await self._pass_piece(piece)

    async def _pass_piece(self, message: Message) -> None:
        if self._call.content is not None:
            self._call.content.add(message.get("body", b""))
        await self._deliver(message)

    async def _answer_error(self, status: int, event: bytes) -> None:
        """Answer the error that a stream would begin with as if it were no stream."""
        self._held = []
        self._start = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json")],
        }
        await self._collect_error({"body": _document(event)})

    async def _collect_error(self, message: Message) -> None:
        self._error_body += message.get("body", b"")
        if message.get("more_body", False):
            return
        assert self._start is not None
        if _code_of(self._call) == "engine_dead":  # vLLM says 500
            self._start["status"] = 503
        self._call.status = self._start["status"]
        body = self._translated(self._call.status)
        kept = [(k, v) for k, v in self._start.get("headers", []) if k.lower() not in _OURS]
        self._start["headers"] = [
            *kept,
            (b"content-length", str(len(body)).encode()),
            *response_headers(self._call),
        ]
        if self._start["status"] in (429, 503):
            seconds = b"10" if self._call.error_code == "engine_dead" else b"1"
            self._start["headers"].append((b"retry-after", seconds))
        self._call.response_complete = True
        await self._deliver(self._start)
        await self._deliver({"type": "http.response.body", "body": body})

    def _translated(self, status: int) -> bytes:
        try:
            parsed: Any = json.loads(bytes(self._error_body))
        except ValueError:
            parsed = None
        error = translate_vllm_error(status, parsed, _code_of(self._call))
        self._call.error_code = error["error"]["code"]
        self._call.fault = self._call.fault or error["error"]["message"]
        return json.dumps(error).encode()

    def _translated_event(self, event: bytes) -> bytes:
        """vLLM's error event in a stream, after its 200, as OpenAI's envelope."""
        if not (status := _status_of_event(event)):
            return event
        _, end, rest = event.partition(b"\n\n")
        parsed = json.loads(_document(event))
        error = translate_vllm_error(status, parsed, _code_of(self._call))
        self._call.error_code = self._call.error_code or error["error"]["code"]
        self._call.late_status = self._call.late_status or status
        self._call.fault = self._call.fault or error["error"]["message"]
        return b"data: " + json.dumps(error).encode() + end + rest


def _document(event: bytes) -> bytes:
    return event.partition(b"\n\n")[0].removeprefix(b"data: ")


def _status_of_event(event: bytes) -> int:
    """The status that vLLM writes into an error event; 0 if it is no such event."""
    try:
        return int(json.loads(_document(event))["error"].get("code") or 500)
    except (ValueError, TypeError, AttributeError):
        return 0


def _code_of(call: Call) -> str | None:
    """The code of an engine failure that vLLM's status does not distinguish."""
    if call.engine_error == "EngineDeadError":  # vllm.v1.engine.exceptions
        return "engine_dead"
    return "adapter_unhealthy" if call.repaired_values else None

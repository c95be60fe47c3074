"""Plays a case's steps on a connection of its own, byte by byte, and collects the answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field

import httptools

from tests.fuzz.case import Case, Step

ANSWER_SECONDS = 90.0
_SIP_BYTES = 64
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the kernel sends RST


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False


@dataclass
class Outcome:
    """`began`, `ended`: time.monotonic(), the same clock in every process."""

    case: Case
    began: float
    ended: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    problem: str = ""

    @property
    def complete(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.complete]


async def play(case: Case, port: int) -> Outcome:
    outcome = Outcome(case, time.monotonic())
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await _Caller(reader, writer, outcome).take(case.steps)
            finally:
                writer.transport.abort()
    except TimeoutError:
        outcome.problem = f"no answer within {ANSWER_SECONDS:g} s"
    except ConnectionRefusedError as error:
        outcome.problem = f"no connection: {error}"
    except OSError:
        pass  # closed by the server, as it may; what it answered is judged
    outcome.ended = time.monotonic()
    return outcome


class _Caller:
    """Also the protocol of httptools.HttpResponseParser."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outcome: Outcome
    ) -> None:
        self._reader, self._writer, self._outcome = reader, writer, outcome
        self._parser = httptools.HttpResponseParser(self)
        self._received = 0  # bytes

    async def take(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            await getattr(self, f"_{step.action}")(step)

    async def _send(self, step: Step) -> None:
        self._writer.write(step.data)
        with contextlib.suppress(ConnectionError):  # refused before its end: the answer is there
            await self._writer.drain()

    async def _drip(self, step: Step) -> None:
        for byte in step.data:
            self._writer.write(bytes([byte]))
            await asyncio.sleep(step.amount)

    async def _pause(self, step: Step) -> None:
        await asyncio.sleep(step.amount)

    async def _answers(self, step: Step) -> None:
        while len(self._outcome.complete) < step.amount and await self._take_in(1 << 16):
            pass

    async def _read(self, step: Step) -> None:
        while self._received < step.amount and not self._outcome.complete:
            if not await self._take_in(1 << 16):
                return

    async def _sip(self, step: Step) -> None:
        end = time.monotonic() + step.amount
        while time.monotonic() < end and await self._take_in(_SIP_BYTES):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _close(self, step: Step) -> None:
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def _reset(self, step: Step) -> None:
        if own := self._writer.get_extra_info("socket"):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    async def _take_in(self, most: int) -> bool:
        data = await self._reader.read(most)
        self._received += len(data)
        if data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                self._outcome.problem = f"the answer is not HTTP: {error}: {data[:200]!r}"
                return False
        return bool(data)

    # Of the parser

    def on_message_begin(self) -> None:
        self._outcome.answers.append(Answer())
        self._parts: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._outcome.answers[-1].headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._outcome.answers[-1].status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        answer = self._outcome.answers[-1]
        if answer.status == 100:
            self._outcome.answers.pop()
            return
        answer.body, answer.complete = b"".join(self._parts), True

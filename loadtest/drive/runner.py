"""Makes a phase's calls in one event loop, when they are due.

A call of an open loop waits for no other answer (no coordinated omission). Records the client's own
lateness: of each call, and of the event loop. Independent of planning and of request bodies.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from loadtest.drive.client import Target, ask, open_session
from loadtest.plan.plan import Call
from loadtest.records import Record

LAG_EVERY = 0.05  # seconds between samples of the loop's lag
# Without a server a call fails at once: a closed loop without a pause would spin.
_PAUSE_SECONDS = 0.1


class Part(msgspec.Struct, frozen=True):
    """The share of one process in the plan: each call belongs to one process."""

    index: int = 0
    processes: int = 1

    def of_calls(self, calls: Sequence[Call]) -> Sequence[Call]:
        return calls[self.index :: self.processes]

    def of_callers(self, concurrency: int) -> range:
        """Its callers of a closed loop, each by its number."""
        return range(self.index, concurrency, self.processes)


class Work(NamedTuple):
    """A phase for one process."""

    seconds: float
    calls: Sequence[Call] = ()  # its calls of open loops, ordered by `at`
    callers: Mapping[str, int] = {}  # of closed loops in all processes, by stream
    turn: Callable[[str, int], Call] | None = None  # a closed loop's call, by stream and number


class Request(NamedTuple):
    """A call's HTTP request."""

    path: str
    body: dict[str, Any]
    model: str


OnRecord = Callable[[Record], None]


class Runner:
    """An async context manager that owns the connections."""

    def __init__(
        self, target: Target, compose: Callable[[Call], Request], part: Part | None = None
    ) -> None:
        self._target = target
        self._compose = compose
        self._part = part or Part()
        self._lag: list[float] = []
        self.sent = 0  # calls of the present phase
        self.ended = 0

    async def __aenter__(self) -> Self:
        self._session = open_session()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    def take_lag(self) -> list[float]:
        """Samples of the event loop's lag in seconds since the last call of this method."""
        taken, self._lag = self._lag, []
        return taken

    async def run(self, work: Work, began: float, on_record: OnRecord) -> None:
        """Return when the phase's seconds have passed and every call has ended.

        Args:
            began: the phase's begin, seconds of time.monotonic().
        """
        self.sent = self.ended = 0
        watch = asyncio.create_task(self._watch_lag())
        try:
            async with asyncio.TaskGroup() as group:
                for stream, callers in work.callers.items():
                    for caller in self._part.of_callers(callers):
                        numbers = itertools.count(caller, callers)
                        group.create_task(self._repeat(work, stream, numbers, began, on_record))
                await self._dispatch(work.calls, began, on_record, group)
                await _sleep_until(began + work.seconds)
        finally:
            watch.cancel()

    async def _dispatch(
        self, calls: Sequence[Call], began: float, on_record: OnRecord, group: asyncio.TaskGroup
    ) -> None:
        for call in calls:
            assert call.at is not None
            request = self._compose(call)  # before it is due
            await _sleep_until(began + call.at)
            group.create_task(self._make(call, request, began + call.at, on_record))

    async def _repeat(
        self, work: Work, stream: str, numbers: Iterator[int], began: float, on_record: OnRecord
    ) -> None:
        """One caller of a closed loop: calls again when its last call has ended."""
        assert work.turn is not None
        turn = began
        await _sleep_until(turn)
        while turn < began + work.seconds:
            call = work.turn(stream, next(numbers))
            record = await self._make(call, self._compose(call), turn, on_record)
            if record.outcome == "failed":  # do not flood a server that refuses at once
                await asyncio.sleep(_PAUSE_SECONDS)
                turn = time.monotonic()
            else:
                turn = record.ended

    async def _make(
        self, call: Call, request: Request, scheduled: float, on_record: OnRecord
    ) -> Record:
        self.sent += 1
        path, body, model = request
        record = await ask(self._session, call, body, path, model, scheduled, self._target)
        self.ended += 1
        on_record(record)
        return record

    async def _watch_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            self._lag.append(max(0.0, time.monotonic() - due))


async def _sleep_until(due: float) -> None:
    """Yields even when `due` has passed, or started calls would never be sent."""
    await asyncio.sleep(max(0.0, due - time.monotonic()))

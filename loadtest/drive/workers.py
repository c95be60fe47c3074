"""The load generator's processes, as their parent sees them: started, told phases, heard, ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from loadtest.drive.client import Target
from loadtest.drive.messages import (
    Begin,
    Drained,
    FromWorker,
    Order,
    Prepare,
    Prepared,
    Report,
    ToWorker,
    to_line,
)
from loadtest.drive.progress import Tick
from loadtest.drive.runner import OnRecord
from loadtest.errors import WorkerFailed
from loadtest.plan.scenario import Phase, Scenario
from loadtest.records import Client

COMMAND = (sys.executable, "-m", "loadtest.drive.worker")
_HEAD_START = 0.2  # seconds from when all have prepared a phase to its begin
_LINE_LIMIT = 256 * 1024 * 1024  # bytes of one report
_STOP_SECONDS = 5.0
_SHOWN = 200  # characters of what a worker said last


class _Worker:
    """One process. Its own session, so that Ctrl-C reaches the parent alone."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.sent = 0  # calls of the present phase
        self.in_flight = 0
        self.cpu_seconds = 0.0

    async def start(self, command: Sequence[str], order: Order) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,  # read when it fails; kept in memory till then
            limit=_LINE_LIMIT,
            start_new_session=True,
        )
        await self._tell(order)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def prepare(self, phase: str) -> None:
        await self._tell(Prepare(phase))
        await self._hear()

    async def run(self, began: float, on_report: Callable[[Report], None]) -> None:
        """Until all of its calls have ended.

        Raises:
            WorkerFailed: it ended before that.
        """
        self.sent = self.in_flight = 0
        await self._tell(Begin(began))
        while not isinstance(message := await self._hear(), Drained):
            assert not isinstance(message, Prepared)
            self.sent, self.in_flight = message.sent, message.in_flight
            on_report(message)
        self.cpu_seconds = message.cpu_seconds

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._wait()

    async def _wait(self) -> int:
        """Its exit code. It ends by itself, or it is ended."""
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()

    async def _tell(self, message: Order | ToWorker) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(to_line(message))
        with contextlib.suppress(ConnectionError):  # it has ended: told when it is heard
            await self._process.stdin.drain()

    async def _hear(self) -> FromWorker:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        try:
            message: FromWorker = msgspec.json.decode(line, type=FromWorker)
        except msgspec.DecodeError:  # also when it has ended: the line is empty or was cut
            raise await self._failed() from None
        return message

    async def _failed(self) -> WorkerFailed:
        code = await self._wait()
        assert self._process.stderr is not None
        said = (await self._process.stderr.read()).decode(errors="replace").splitlines()
        # A group of exceptions ends with lines that are drawn.
        bare = [line.strip(" |+-") for line in said]
        last = next((line for line in reversed(bare) if line), "nothing")
        return WorkerFailed(
            f"process {self.index} of the load generator ended (exit code {code}) and said last: "
            f"{last[:_SHOWN]}. What it sent is lost: run the scenario again"
        )


class Workers:
    """An async context manager around all processes of the load generator."""

    def __init__(
        self,
        scenario: Scenario,
        models: Sequence[str],
        base: str,
        target: Target,
        processes: int = 1,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """
        Args:
            models: names to ask for, of the run's adapters by number.
            base: the name to ask for where a call goes to the base.
        """
        self._command = command
        self._workers = [_Worker(index) for index in range(processes)]
        self._lag: list[float] = []
        self._orders = [
            Order(
                scenario=scenario.model_dump(mode="json"),
                models=list(models),
                base=base,
                target=target,
                index=index,
                processes=processes,
            )
            for index in range(processes)
        ]

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            for worker, order in zip(self._workers, self._orders, strict=True):
                await worker.start(self._command, order)
                stack.push_async_callback(worker.stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def run_phase(
        self,
        phase: Phase,
        on_record: OnRecord,
        on_tick: Callable[[Tick], None] | None = None,
        on_begin: Callable[[float], None] | None = None,
    ) -> tuple[float, float]:
        """Make the phase's calls; returns when it began, and when it and its last call had ended.

        Args:
            on_tick: told some ten times a second how the phase stands.
            on_begin: told when the phase will begin, just before it does.

        Raises:
            WorkerFailed: a process of the load generator ended.
        """
        await _together(worker.prepare(phase.name) for worker in self._workers)
        began = time.monotonic() + _HEAD_START
        ended = began + phase.seconds
        if on_begin is not None:
            on_begin(began)

        def take(report: Report) -> None:
            nonlocal ended
            self._lag += report.lag
            for record in report.records:
                ended = max(ended, record.ended)
                on_record(record)
            if on_tick is not None:
                on_tick(self._tick(began))

        await _together(worker.run(began, take) for worker in self._workers)
        return began, ended

    def client(self) -> Client:
        """How the load generator fared in all phases so far."""
        return Client(
            processes=len(self._workers),
            lag=self._lag,
            cpu_seconds=sum(worker.cpu_seconds for worker in self._workers),
        )

    def _tick(self, began: float) -> Tick:
        return Tick(
            seconds=time.monotonic() - began,
            sent=sum(worker.sent for worker in self._workers),
            in_flight=sum(worker.in_flight for worker in self._workers),
        )


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Raises what the first of them raised; the others are broken off."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None

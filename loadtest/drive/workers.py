"""The load generator's processes: each makes its share of a phase's calls and reports the records.

For each phase the parent sends its name, and the worker plans it and answers. Then the parent sends
the time at which all workers begin, and each reports some ten times a second until it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from loadtest.drive.client import Target
from loadtest.drive.progress import Tick
from loadtest.drive.runner import OnRecord, Part, Request, Runner, Work
from loadtest.errors import WorkerFailed
from loadtest.plan import plan, prompts
from loadtest.plan.plan import Call
from loadtest.plan.scenario import Phase, Scenario
from loadtest.plan.traffic import Closed
from loadtest.records import Client, Record

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy the parent's event loop
_HEAD_START = 0.2  # seconds between the last worker's answer and the phase's begin
_STOP_SECONDS = 5.0
_REPORT_EVERY = 0.1  # seconds
_SHOWN = 200  # characters of a worker's error


class Assignment(NamedTuple):
    """The constants of a worker. Holds secrets: it travels through a pipe only."""

    scenario: Scenario
    models: Sequence[str]  # names of the run's adapters, by number
    base: str  # model name of calls to the base
    target: Target
    part: Part


class Report(NamedTuple):
    """How a worker's phase stands, and what is new since the last report."""

    sent: int = 0  # calls of the phase so far
    in_flight: int = 0
    records: Sequence[Record] = ()
    lag: Sequence[float] = ()  # seconds by which the event loop was late
    cpu_seconds: float = 0.0  # of the process since its start
    is_last: bool = False


# ---- the parent's side


@contextlib.asynccontextmanager
async def started(
    scenario: Scenario, models: Sequence[str], base: str, target: Target, processes: int = 1
) -> AsyncIterator[Workers]:
    """Processes that share the scenario's calls, stopped at the end of the block."""
    workers: list[_Worker] = []
    messages: asyncio.Queue[_Message] = asyncio.Queue()
    async with contextlib.AsyncExitStack() as stack:
        for index in range(processes):
            assignment = Assignment(scenario, models, base, target, Part(index, processes))
            workers.append(_Worker(assignment, messages))
            stack.push_async_callback(workers[-1].stop)
        yield Workers(workers, messages)


class Workers:
    def __init__(self, workers: Sequence[_Worker], messages: asyncio.Queue[_Message]) -> None:
        self._workers = workers
        self._messages = messages
        self._lag: list[float] = []

    async def run_phase(
        self,
        phase: Phase,
        on_record: OnRecord,
        on_tick: Callable[[Tick], None] = lambda _: None,
        on_begin: Callable[[float], None] = lambda _: None,
    ) -> tuple[float, float]:
        """Make the phase's calls.

        Args:
            on_tick: called with each report, some ten times a second.
            on_begin: called with the phase's begin shortly before it.

        Returns:
            The phase's begin, and the later of its planned end and the end of its last call.

        Raises:
            WorkerFailed: a process of the load generator ended.
        """
        self._send(phase.name)
        for _ in self._workers:
            await self._next_report()
        began = time.monotonic() + _HEAD_START
        ended = began + phase.seconds
        on_begin(began)
        self._send(began)
        while not all(worker.report.is_last for worker in self._workers):
            report = await self._next_report()
            self._lag += report.lag
            for record in report.records:
                ended = max(ended, record.ended)
                on_record(record)
            on_tick(self._tick(began))
        return began, ended

    def client(self) -> Client:
        """The load generator's lag and processor time in all phases so far."""
        return Client(
            processes=len(self._workers),
            lag=self._lag,
            cpu_seconds=sum(worker.report.cpu_seconds for worker in self._workers),
        )

    def _tick(self, began: float) -> Tick:
        return Tick(
            seconds=time.monotonic() - began,
            sent=sum(worker.report.sent for worker in self._workers),
            in_flight=sum(worker.report.in_flight for worker in self._workers),
        )

    def _send(self, message: str | float) -> None:
        for worker in self._workers:
            with contextlib.suppress(OSError):  # it has ended: the next message says so
                worker.connection.send(message)

    async def _next_report(self) -> Report:
        """The next report of any worker; becomes its worker's last one."""
        worker, message = await self._messages.get()
        if isinstance(message, Report):
            worker.report = message
            return message
        await worker.join()
        raise WorkerFailed(
            f"process {worker.index} of the load generator ended (exit code "
            f"{worker.process.exitcode}) and said last: {(message or 'nothing')[:_SHOWN]}. "
            "What it sent is lost: run the scenario again"
        )


class _Worker:
    """One process, seen from the parent."""

    def __init__(self, assignment: Assignment, messages: asyncio.Queue[_Message]) -> None:
        self.index = assignment.part.index
        self.report = Report()  # the last one
        self.connection, its_connection = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(assignment, its_connection), daemon=True)
        resource_tracker.ensure_running()  # which the first start does, unblocking SIGINT
        with _sigint_blocked():
            self.process.start()
        its_connection.close()  # or the process's end would not be seen here
        _listen(
            self.connection,
            lambda message: messages.put_nowait((self, message)),
            lambda: messages.put_nowait((self, None)),
        )

    async def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.connection.fileno())
        self.connection.close()
        await self.join()

    async def join(self) -> None:
        await asyncio.to_thread(self.process.join, _STOP_SECONDS)
        self.process.kill()
        await asyncio.to_thread(self.process.join)


# A report, or the text of the exception that ends the process, or None when it has ended.
_Message = tuple[_Worker, Report | str | None]


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A process started here inherits a blocked SIGINT, so that Ctrl-C stops the parent alone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(
    connection: Connection, take: Callable[[Any], object], on_end: Callable[[], object]
) -> None:
    """Call `take` with each message, and `on_end` when the other side closes or ends."""
    loop = asyncio.get_running_loop()

    def receive() -> None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            loop.remove_reader(connection.fileno())
            on_end()
        else:
            take(message)

    loop.add_reader(connection.fileno(), receive)


# ---- the worker's side


def _work(assignment: Assignment, connection: Connection) -> None:
    """The process: run phases until the parent closes the connection or ends."""
    os.setsid()  # a signal to the parent's group is the parent's to handle
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # thousands of calls may wait
    outbox: queue.SimpleQueue[Report | str | None] = queue.SimpleQueue()
    sender = threading.Thread(target=_send_all, args=(outbox, connection))
    sender.start()
    try:
        asyncio.run(_run_phases(assignment, connection, outbox.put))
    except asyncio.CancelledError:
        return
    except BaseException as error:  # noqa: BLE001 - the parent reports it
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        outbox.put(" ".join(f"{type(error).__name__}: {error}".split()))
        raise SystemExit(1) from None
    finally:
        outbox.put(None)
        sender.join()


def _send_all(outbox: queue.SimpleQueue[Report | str | None], connection: Connection) -> None:
    """Runs in a thread: a parent that is slow to read must not delay calls."""
    with contextlib.suppress(OSError):  # the parent has ended
        while (message := outbox.get()) is not None:
            connection.send(message)


async def _run_phases(
    assignment: Assignment, connection: Connection, send: Callable[[Report], None]
) -> None:
    task, orders = asyncio.current_task(), asyncio.Queue[Any]()
    assert task is not None
    _listen(connection, orders.put_nowait, on_end=task.cancel)
    async with Runner(
        assignment.target, functools.partial(_compose, assignment), assignment.part
    ) as runner:
        records: list[Record] = []

        def report(is_last: bool = False) -> None:
            in_flight = runner.sent - runner.ended
            send(
                Report(
                    *(runner.sent, in_flight, records.copy(), runner.take_lag()),
                    *(time.process_time(), is_last),
                )
            )
            records.clear()

        while True:
            work = _plan(assignment, await orders.get())
            send(Report())
            began = await orders.get()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(runner.run(work, began, records.append))
                while not running.done():
                    await asyncio.wait([running], timeout=_REPORT_EVERY)
                    report()
            report(is_last=True)


def _plan(assignment: Assignment, name: str) -> Work:
    phase = next(each for each in assignment.scenario.phases if each.name == name)
    closed = {s: each for s, each in phase.traffic.items() if isinstance(each, Closed)}
    return Work(
        seconds=phase.seconds,
        calls=assignment.part.of_calls(plan.plan_phase(assignment.scenario, phase)),
        callers={stream: each.concurrency for stream, each in closed.items()},
        turn=functools.partial(plan.closed_call, assignment.scenario, phase),
    )


def _compose(assignment: Assignment, call: Call) -> Request:
    model = assignment.base if call.adapter is None else assignment.models[call.adapter]
    body = prompts.body(call, model, assignment.scenario) | assignment.target.fields.get(model, {})
    return Request(prompts.path(call), body, model)

"""A process of the load generator (`python -m loadtest.drive.worker`); drive/workers.py starts it.

Takes its orders from stdin, tells what happened on stdout, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import functools
import resource
import sys
import time

import msgspec

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
from loadtest.drive.runner import Part, Request, Runner, Work
from loadtest.plan import plan, prompts
from loadtest.plan.plan import Call
from loadtest.plan.scenario import Scenario
from loadtest.plan.traffic import Closed
from loadtest.records import Record

_LINE_LIMIT = 64 * 1024 * 1024
_REPORT_EVERY = 0.1  # seconds
_REPORTED = 100  # records, so that no line gets too long


class Worker:
    def __init__(self, order: Order, writer: asyncio.StreamWriter) -> None:
        self._order = order
        self._writer = writer
        self._scenario = Scenario.model_validate(order.scenario)
        self._part = Part(order.index, order.processes)
        self._records: list[Record] = []
        self._work = Work(0)
        self._runner = Runner(order.target, self._compose, self._part)

    async def obey(self, orders: asyncio.StreamReader) -> None:
        """Returns when there are no more orders; a phase that runs is broken off."""
        async with self._runner, asyncio.TaskGroup() as group:
            running: asyncio.Task[None] | None = None
            async for line in orders:
                match msgspec.json.decode(line, type=ToWorker):
                    case Prepare(phase):
                        self._prepare(phase)
                    case Begin(at):
                        running = group.create_task(self._run(at))
            if running is not None:
                running.cancel()

    def _prepare(self, name: str) -> None:
        phase = next(each for each in self._scenario.phases if each.name == name)
        closed = {s: each for s, each in phase.traffic.items() if isinstance(each, Closed)}
        self._work = Work(
            seconds=phase.seconds,
            calls=self._part.of_calls(plan.plan_phase(self._scenario, phase)),
            callers={s: self._part.of_callers(each.concurrency) for s, each in closed.items()},
            turn=functools.partial(plan.closed_call, self._scenario, phase),
        )
        self._tell(Prepared())

    def _compose(self, call: Call) -> Request:
        model = self._order.base if call.adapter is None else self._order.models[call.adapter]
        return Request(prompts.path(call), prompts.body(call, model, self._scenario), model)

    async def _run(self, began: float) -> None:
        reporting = asyncio.create_task(self._keep_reporting())
        try:
            await self._runner.run(self._work, began, self._take)
        finally:
            reporting.cancel()
        self._report()
        self._tell(Drained(time.process_time()))

    def _take(self, record: Record) -> None:
        self._records.append(record)
        if len(self._records) >= _REPORTED:
            self._report()

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_EVERY)
            self._report()

    def _report(self) -> None:
        records, self._records = self._records, []
        runner = self._runner
        in_flight = runner.sent - runner.ended
        self._tell(Report(runner.sent, in_flight, records, runner.take_lag()))

    def _tell(self, message: FromWorker) -> None:
        """Never waits for the parent: what it has not read yet waits in memory."""
        self._writer.write(to_line(message))


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=_LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, sys.stdout
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    order = msgspec.json.decode(await orders.readline(), type=Order)
    await Worker(order, writer).obey(orders)


def _allow_connections() -> None:
    """As many as the system lets us: a server that can't keep up has thousands waiting."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    _allow_connections()
    asyncio.run(_serve())

"""The load generator's processes against a stand-in server.

Real processes: their start, their messages and their end are the subject.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from openai_standin import Manner, Standin, serve

from loadtest.drive import workers as module
from loadtest.drive.client import Target
from loadtest.drive.progress import Tick
from loadtest.drive.runner import Part
from loadtest.drive.workers import Workers
from loadtest.errors import WorkerFailed
from loadtest.plan.plan import plan_phase
from loadtest.plan.scenario import Scenario
from loadtest.records import Record

MODELS = ["a-0", "a-1", "a-2"]


@pytest.fixture
async def standin():
    async with serve() as server:
        yield server


def make_scenario(*phases: dict[str, Any]) -> Scenario:
    streams = {
        "mixed": {"adapters": {"count": 3}, "base_share": 0.3, "streaming": 0.5},
        "chatty": {"endpoint": "chat", "output_tokens": 2},
    }
    document = {"name": "test", "adapters": 3, "streams": streams, "phases": list(phases)}
    return Scenario.model_validate(document)


def open_loop(name: str = "steady", seconds: float = 0.5, rate: float = 60) -> dict[str, Any]:
    traffic = {"mixed": {"kind": "constant", "rate": rate}}
    return {"name": name, "seconds": seconds, "traffic": traffic}


def pids(workers: Workers) -> list[int]:
    return [worker.process.pid for worker in workers._workers]


def read_process(pid: int) -> bytes:
    """Its command line and its environment."""
    process = Path(f"/proc/{pid}")
    return (process / "cmdline").read_bytes() + (process / "environ").read_bytes()


def make_workers(
    scenario: Scenario, standin: Standin, processes: int = 1
) -> AbstractAsyncContextManager[Workers]:
    target = Target(url=standin.url, headers={"Authorization": "Bearer secret"}, timeout_seconds=5)
    return module.started(scenario, MODELS, "tiny", target, processes)


async def test_two_workers_make_exactly_the_plans_calls(standin: Standin):
    scenario = make_scenario(open_loop("one"), open_loop("two", 0.3))
    records: list[Record] = []
    async with make_workers(scenario, standin, 2) as workers:
        for phase in scenario.phases:
            began, ended = await workers.run_phase(phase, records.append)
            assert ended >= began + phase.seconds
            assert ended >= max(record.ended for record in records)
        client = workers.client()
    planned = [call for phase in scenario.phases for call in plan_phase(scenario, phase)]
    asked = ["tiny" if call.adapter is None else MODELS[call.adapter] for call in planned]
    assert Counter((r.phase, r.stream, r.number, r.model) for r in records) == Counter(
        (call.phase, call.stream, call.number, model)
        for call, model in zip(planned, asked, strict=True)
    )
    assert {record.outcome for record in records} == {"ok"}
    assert Counter(body["model"] for body in standin.asked) == Counter(asked)
    assert client.processes == 2
    assert len(client.lag) > 10
    assert client.cpu_seconds > 0


async def test_calls_are_made_when_the_plan_says(standin: Standin):
    scenario = make_scenario(open_loop())
    records: list[Record] = []
    async with make_workers(scenario, standin) as workers:
        began, _ = await workers.run_phase(scenario.phases[0], records.append)
    due = {call.number: call.at for call in plan_phase(scenario, scenario.phases[0])}
    for record in records:
        assert record.scheduled - began == pytest.approx(due[record.number], abs=1e-6)
        assert 0 <= record.lateness < 0.3


async def test_a_closed_loop_is_shared(standin: Standin):
    traffic = {"chatty": {"kind": "closed", "concurrency": 3}}
    scenario = make_scenario({"name": "closed", "seconds": 0.4, "traffic": traffic})
    standin.manner.seconds = 0.05
    records: list[Record] = []
    async with make_workers(scenario, standin, 2) as workers:
        await workers.run_phase(scenario.phases[0], records.append)
    assert standin.most_in_flight == 3
    assert len({record.number for record in records}) == len(records) > 3


async def test_the_parent_gets_the_phases_state_and_its_begin(standin: Standin):
    standin.manner.seconds = 0.5
    scenario = make_scenario(open_loop(seconds=0.6, rate=20))
    ticks: list[Tick] = []
    begins: list[float] = []
    async with make_workers(scenario, standin, 2) as workers:
        before = time.monotonic()
        began, _ = await workers.run_phase(
            scenario.phases[0], lambda record: None, ticks.append, begins.append
        )
    assert begins == [began]
    assert began > before
    assert max(tick.in_flight for tick in ticks) > 4
    assert (ticks[-1].sent, ticks[-1].in_flight) == (12, 0)
    assert ticks == sorted(ticks)


async def test_the_api_key_is_on_no_command_line(standin: Standin):
    scenario = make_scenario(open_loop())
    async with make_workers(scenario, standin) as workers:
        await workers.run_phase(scenario.phases[0], lambda record: None)
        started_with = read_process(pids(workers)[0])
    assert b"multiprocessing" in started_with
    assert b"secret" not in started_with
    assert standin.headers[0]["Authorization"] == "Bearer secret"


async def test_a_worker_that_is_killed_fails_the_phase(standin: Standin):
    scenario = make_scenario(open_loop(seconds=30))
    async with make_workers(scenario, standin, 2) as workers:
        running = asyncio.create_task(workers.run_phase(scenario.phases[0], lambda record: None))
        await asyncio.wait_for(standin.came.wait(), 30)
        os.kill(pids(workers)[1], signal.SIGKILL)
        with pytest.raises(WorkerFailed, match=r"process 1 .* \(exit code -9\)"):
            await running
        started = time.monotonic()
    assert time.monotonic() - started < 3  # the other worker stops too, within its phase


async def test_a_workers_exception_is_in_the_error(standin: Standin):
    """The plan has an adapter without a name: an exception deep inside the worker's tasks."""
    scenario = make_scenario(open_loop())
    target = Target(url=standin.url)
    async with module.started(scenario, MODELS[:1], "tiny", target) as workers:
        with pytest.raises(WorkerFailed, match="said last: IndexError: list index out of range"):
            await workers.run_phase(scenario.phases[0], lambda record: None)


async def test_a_worker_ends_when_its_parents_connection_closes(standin: Standin):
    standin.manner = Manner(hangs=True)
    scenario = make_scenario(open_loop(seconds=30))
    async with make_workers(scenario, standin) as workers:
        running = asyncio.create_task(workers.run_phase(scenario.phases[0], lambda record: None))
        await asyncio.wait_for(standin.came.wait(), 30)
        running.cancel()
        (pid,) = pids(workers)
    with pytest.raises(FileNotFoundError):
        read_process(pid)
    await asyncio.wait_for(standin.left.wait(), 2)


def blocked_signals(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigBlk")]
    return {number for number in range(1, 64) if mask & 1 << (number - 1)}


async def test_signals_to_the_parents_group_do_not_reach_the_workers(standin):
    target = Target(url=standin.url)
    scenario = make_scenario(open_loop())
    async with module.started(scenario, MODELS, "base", target, 2) as workers:
        for pid in pids(workers):
            assert signal.SIGINT in blocked_signals(pid)
            while os.getsid(pid) != pid:  # noqa: ASYNC110 - it is starting
                await asyncio.sleep(0.02)


def test_a_server_that_reads_more_than_the_model_gets_its_fields():
    scenario = make_scenario(open_loop())
    fields = {"a-1": {"lora": [{"id": 1, "scale": 1.0}]}}
    target = Target(url="http://127.0.0.1:1", fields=fields)
    assignment = module.Assignment(scenario, MODELS, "tiny", target, Part())
    for call in plan_phase(scenario, scenario.phases[0]):
        request = module._compose(assignment, call)
        assert ("lora" in request.body) == (request.model == "a-1")
        assert request.body["model"] == request.model

"""Calls are sent when they are due; a slow server and a slow client show in the records."""

from __future__ import annotations

import asyncio
import time

import pytest
from openai_standin import Manner, Standin, serve
from planned import compose, make_call

from loadtest.drive.client import Target
from loadtest.drive.runner import Part, Runner, Work
from loadtest.plan.plan import Call
from loadtest.records import Record


@pytest.fixture
async def standin():
    async with serve() as server:
        yield server


def turn(stream: str, number: int) -> Call:
    return make_call(stream=stream, number=number, at=None, streamed=False)


async def run(url: str, work: Work, part: Part | None = None) -> tuple[list[Record], Runner]:
    records: list[Record] = []
    async with Runner(Target(url=url, timeout_seconds=5), compose, part) as runner:
        await runner.run(work, time.monotonic() + 0.02, records.append)
    return records, runner


async def test_an_open_loop_does_not_wait_for_answers(standin: Standin):
    standin.manner.seconds = 0.6
    calls = [make_call(number=n, at=n * 0.01, streamed=False) for n in range(20)]
    records, runner = await run(standin.url, Work(0.2, calls))
    assert [record.outcome for record in records] == ["ok"] * 20
    assert standin.most_in_flight == 20
    assert max(record.lateness for record in records) < 0.5
    scheduled = sorted(record.scheduled for record in records)
    assert scheduled[-1] - scheduled[0] == pytest.approx(0.19)
    assert (runner.sent, runner.ended) == (20, 20)


async def test_lateness_of_the_client_is_recorded(standin: Standin):
    calls = [make_call(number=n, at=n * 0.1) for n in range(3)]

    async def block() -> None:
        await asyncio.sleep(0.05)
        time.sleep(0.3)  # noqa: ASYNC251 - on purpose: blocks the event loop

    blocked = asyncio.create_task(block())
    records, runner = await run(standin.url, Work(0.3, calls))
    await blocked
    late = {record.number: record.lateness for record in records}
    assert late[0] < 0.1
    assert late[1] > 0.15
    assert max(runner.take_lag()) > 0.15
    assert runner.take_lag() == []
    by_number = {record.number: record for record in records}
    assert by_number[1].ttft > 0.15  # waiting in the client counts


async def test_a_late_burst_is_sent_at_once_while_answers_arrive(standin: Standin):
    calls = [make_call(number=n, at=0.0) for n in range(200)]
    records, _ = await run(standin.url, Work(0.0, calls))
    assert {record.number for record in records} == set(range(200))
    assert all(record.outcome == "ok" for record in records)


async def test_a_closed_loop_holds_its_concurrency(standin: Standin):
    standin.manner.seconds = 0.1
    records, _ = await run(standin.url, Work(0.35, callers={"chatty": 3}, turn=turn))
    assert standin.most_in_flight == 3
    assert 3 < len(records) <= 12  # at most four calls per caller: 0, 0.1, 0.2, 0.3
    assert len({record.number for record in records}) == len(records)


async def test_a_closed_loop_schedules_a_call_at_the_end_of_the_last_one(standin: Standin):
    standin.manner.seconds = 0.05
    records, _ = await run(standin.url, Work(0.2, callers={"alone": 1}, turn=turn))
    ends = [record.ended for record in records]
    assert [record.scheduled for record in records][1:] == ends[:-1]
    assert all(end < records[0].scheduled + 0.2 for end in ends[:-1])  # no call after the phase


async def test_a_closed_loop_does_not_spin_without_a_server():
    async with serve() as gone:
        pass
    records, _ = await run(gone.url, Work(0.25, callers={"alone": 1}, turn=turn))
    assert 1 <= len(records) <= 3
    assert {record.reason for record in records} == {"connect"}
    assert max(record.lateness for record in records) < 0.05  # the pause does not count as lateness


async def test_a_phase_lasts_its_seconds_even_if_its_calls_end_earlier(standin: Standin):
    began = time.monotonic()
    await run(standin.url, Work(0.3, [make_call()]))
    assert time.monotonic() - began >= 0.3


async def test_open_and_closed_loops_run_concurrently(standin: Standin):
    standin.choose = lambda body: Manner(seconds=0.1 if "chatty" in body["user"] else 0)
    calls = [make_call(number=n, at=n * 0.02) for n in range(10)]
    records, _ = await run(standin.url, Work(0.25, calls, {"chatty": 1}, turn))
    assert sum(record.stream == "mixed" for record in records) == 10
    assert sum(record.stream == "chatty" for record in records) in (2, 3)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_parts_are_disjoint_and_complete(processes):
    parts = [Part(index, processes) for index in range(processes)]
    calls = [make_call(number=n) for n in range(10)]
    taken = [call.number for part in parts for call in part.of_calls(calls)]
    assert sorted(taken) == list(range(10))
    callers = [caller for part in parts for caller in part.of_callers(7)]
    assert sorted(callers) == list(range(7))


@pytest.mark.parametrize(("part", "callers"), [(Part(), {0, 1, 2}), (Part(1, 2), {1})])
async def test_each_caller_of_a_closed_loop_makes_its_own_calls(standin: Standin, part, callers):
    """Caller 1 is four times as slow, and makes fewer calls than the others, not the same."""
    standin.choose = lambda body: Manner(seconds=0.2 if "chatty-1/" in body["user"] else 0.05)
    work = Work(0.3, callers={"chatty": 3}, turn=lambda stream, n: turn(f"{stream}-{n % 3}", n))
    records, _ = await run(standin.url, work, part)
    made = {caller: [r.number for r in records if r.number % 3 == caller] for caller in range(3)}
    assert {caller for caller, numbers in made.items() if numbers} == callers
    for caller in callers:
        assert sorted(made[caller]) == list(range(caller, 3 * len(made[caller]), 3))
    assert len(made[1]) == 2
    assert all(len(made[caller]) > 2 for caller in callers - {1})


async def test_an_exception_in_a_call_propagates(standin: Standin):
    def broken(stream: str, number: int) -> Call:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await run(standin.url, Work(5, callers={"chatty": 1}, turn=broken))
    assert caught.group_contains(ZeroDivisionError)

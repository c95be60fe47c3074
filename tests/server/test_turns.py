"""Callers take turns: who sends much waits behind its own requests."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import Unavailable
from server.turns import Turns


class Work:
    """Requests that hold a place until they are let go, and the order in which they got one."""

    def __init__(self, turns):
        self.turns = turns
        self.order = []
        self.tasks = {}
        self.gates = {}

    async def ask(self, name, caller):
        self.gates[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, caller))
        await asyncio.sleep(0)

    async def _hold(self, name, caller):
        async with self.turns.take(caller):
            self.order.append(name)
            await self.gates[name].wait()

    async def end(self, name):
        self.gates[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)


async def test_a_caller_with_many_requests_waits_behind_its_own():
    work = Work(Turns(1, code="busy"))
    for number in range(4):
        await work.ask(f"flood{number}", "flood")
    await work.ask("other", "other")
    for name in ("flood0", "flood1", "other", "flood2", "flood3"):
        await work.end(name)
    assert work.order == ["flood0", "flood1", "other", "flood2", "flood3"]


async def test_one_who_leaves_while_waiting_takes_no_place():
    work = Work(Turns(1, code="busy"))
    for name in ("first", "leaves", "last"):
        await work.ask(name, name)
    work.tasks["leaves"].cancel()
    await asyncio.sleep(0)
    await work.end("first")
    await work.end("last")
    assert work.order == ["first", "last"]
    assert work.turns.waiting == 0


async def test_one_who_leaves_as_its_turn_comes_passes_it_on():
    work = Work(Turns(1, code="busy"))
    for name in ("first", "leaves", "last"):
        await work.ask(name, "one")
    work.gates["first"].set()
    await work.tasks["first"]  # has given the place to "leaves", which has not run since
    work.tasks["leaves"].cancel()
    await asyncio.sleep(0)
    await work.end("last")
    assert "last" in work.order
    async with asyncio.timeout(1), work.turns.take("again"):
        pass


async def test_a_holder_and_one_who_waits_leave_at_once_and_the_place_is_free():
    work = Work(Turns(1, code="busy"))
    for name in ("holds", "waits", "last"):
        await work.ask(name, name)
    leaving = [work.tasks["holds"], work.tasks["waits"]]
    for task in leaving:
        task.cancel()
    results = await asyncio.gather(*leaving, return_exceptions=True)
    assert [type(each) for each in results] == [asyncio.CancelledError] * 2
    async with asyncio.timeout(1):
        await work.end("last")
        async with work.turns.take("again"):
            pass
    assert work.turns.waiting == 0


async def test_too_many_who_wait_are_refused():
    work = Work(Turns(1, code="busy", each=2, most=3))
    for number in range(3):
        await work.ask(f"a{number}", "a")
    with pytest.raises(Unavailable) as of_one:
        async with work.turns.take("a"):
            pass
    assert (of_one.value.code, of_one.value.retry_after) == ("busy", 1)
    for name in ("a0", "a1", "a2"):
        await work.end(name)


async def test_when_all_is_full_one_with_fewer_displaces_the_last_of_the_one_with_most():
    work = Work(Turns(1, code="busy", each=2, most=3))
    for name, caller in (("a0", "a"), ("a1", "a"), ("a2", "a"), ("b", "b"), ("c", "c")):
        await work.ask(name, caller)
    with pytest.raises(Unavailable):
        await work.tasks["a2"]
    with pytest.raises(Unavailable):  # now each has one
        async with work.turns.take("d"):
            pass
    for name in ("a0", "a1", "b", "c"):
        await work.end(name)
    assert work.order == ["a0", "a1", "b", "c"]
    async with asyncio.timeout(1), work.turns.take("again"):
        pass

"""An engine that lives but does not answer makes the server unready, until it answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

import pytest
from standin_server import House

from server.engine.interface import EngineGone
from server.heartbeat import Heartbeat

LIMIT = 0.2


@pytest.fixture
async def heartbeat(house: House) -> AsyncIterator[Heartbeat]:
    heartbeat = Heartbeat(house.engine, house.lifecycle, LIMIT, most=60)
    task = asyncio.create_task(heartbeat.run())
    yield heartbeat
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_a_silent_engine_makes_the_server_unready_and_its_answer_ready_again(
    house: House, heartbeat: Heartbeat, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lorry.heartbeat")
    await until(lambda: house.engine.pings > 2)
    assert (await house.chat()).status_code == 200
    assert house.count("lorry_engine_up") == 1

    house.engine.stopped = asyncio.Event()  # no call runs: readiness needs no traffic
    took = await until(lambda: not house.lifecycle.is_ready)
    assert took >= LIMIT
    ready = await house.client.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "engine_stalled")
    assert "has not answered for 0.2 s" in ready.json()["stage"]
    assert (await house.client.get("/livez")).status_code == 200
    refused = await house.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_stalled")
    assert int(refused.headers["retry-after"]) > 0
    assert house.count("lorry_engine_up") == 0
    assert heartbeat.silent_seconds > LIMIT

    house.engine.stopped.set()
    house.engine.stopped = None
    await until(lambda: house.lifecycle.is_ready)
    assert (await house.client.get("/readyz")).status_code == 200
    assert (await house.chat()).status_code == 200
    assert house.count("lorry_engine_up") == 1
    began, ended = (r.getMessage() for r in caplog.records if r.name == "lorry.heartbeat")
    assert "has not answered" in began
    assert "answers again" in ended


async def test_an_engine_that_answers_in_time_is_never_unready(
    house: House, heartbeat: Heartbeat
) -> None:
    seen = []
    house.lifecycle.impair = lambda *given, **_: seen.append(given)
    for _ in range(3):
        house.engine.pings = 0
        house.engine.stopped = gate = asyncio.Event()
        asyncio.get_running_loop().call_later(LIMIT * 0.6, gate.set)
        await until(lambda: house.engine.pings > 0)
        await gate.wait()
    assert seen == []


async def test_an_engine_that_has_ended_owes_no_answer_and_is_asked_when_it_is_back(
    house: House, heartbeat: Heartbeat
) -> None:
    async def gone() -> None:
        raise EngineGone("the engine ended")

    answers, house.engine.ping = house.engine.ping, gone
    await asyncio.sleep(LIMIT)
    assert house.lifecycle.hindrances == {}
    assert heartbeat.silent_seconds == 0
    house.engine.ping = answers
    pings = house.engine.pings
    await until(lambda: house.engine.pings > pings)


async def test_an_engine_that_is_silent_for_too_long_is_killed(house: House) -> None:
    house.engine.stopped = asyncio.Event()
    task = asyncio.create_task(Heartbeat(house.engine, house.lifecycle, LIMIT, most=0.9).run())
    took = await until(lambda: house.engine.killed)
    assert 0.9 <= took < 3
    assert not house.lifecycle.is_ready  # until its death is known
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

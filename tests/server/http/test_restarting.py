"""Over HTTP, while the engine is started again: calls wait, probes say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from mortal_engine import MortalStandIn
from standin_server import House, attach, send_json

from server import supervisor as module
from server.call import current_call


@pytest.fixture(params=["fair", "plain"])
async def mortal(
    house: House, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MortalStandIn]:
    monkeypatch.setattr(module, "_SIGNAL_SECONDS", 0.0)
    given = {"admission": request.param, "max_engine_restarts": 1}
    house.parts.settings = house.parts.settings.model_copy(update=given)
    house.residency = attach(house.parts, house.engine, house.inner)
    engine = MortalStandIn(house.engine, house.parts.presence)
    engine.gate = asyncio.Event()
    task = asyncio.create_task(house.parts.supervise(engine).run())
    yield engine
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def away(house: House, mortal: MortalStandIn) -> None:
    mortal.die()
    await asyncio.sleep(0.02)
    assert not house.lifecycle.is_ready


async def back(house: House, mortal: MortalStandIn) -> None:
    assert mortal.gate is not None
    mortal.gate.set()
    async with asyncio.timeout(5):
        while not house.lifecycle.is_ready:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_calls_wait_and_probes_say_restarting(house: House, mortal: MortalStandIn) -> None:
    assert (await house.chat("red")).status_code == 200
    await away(house, mortal)
    ready = await house.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "restarting")
    assert ready.json()["reason"] == "restarting"
    assert int(ready.headers["retry-after"]) > 0
    assert (await house.client.get("/livez")).status_code == 200
    assert house.count("lorry_engine_up") == 0

    calls = [asyncio.create_task(house.chat(name)) for name in ("red", "green", "tiny")]
    done, _ = await asyncio.wait(calls, timeout=0.05)
    assert not done
    assert house.count("lorry_requests_waiting", adapter="green", version="1") == 1
    assert house.count("lorry_oldest_waiting_seconds") > 0
    await back(house, mortal)
    answers = await asyncio.wait_for(asyncio.gather(*calls), 5)
    assert [each.status_code for each in answers] == [200] * 3
    assert (await house.client.get("/readyz")).json()["status"] == "ready"
    assert house.count("lorry_engine_up") == 1
    assert house.count("lorry_engine_restarts_total") == 1
    assert set(house.engine.loaded.values()) == set(house.engine.names[-2:])


async def test_a_deadline_ends_the_wait(house: House, mortal: MortalStandIn) -> None:
    await away(house, mortal)
    late = await house.chat(headers={"x-request-timeout": "0.1"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert house.lifecycle.in_flight == 0


async def test_who_waits_for_an_engine_that_is_given_up_is_told_so(
    house: House, mortal: MortalStandIn
) -> None:
    await away(house, mortal)
    await back(house, mortal)
    mortal.gate = None
    calls = [asyncio.create_task(house.chat(name)) for name in ("red", "tiny")]
    house.engine.gate = asyncio.Event()  # red waits for its load
    await asyncio.wait_for(calls[1], 5)
    mortal.die()
    refused, _ = await asyncio.wait_for(asyncio.gather(*calls), 5)  # the base was answered before
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
    assert int(refused.headers["retry-after"]) > 0


async def test_the_body_of_poison_is_refused_at_once(house: House, mortal: MortalStandIn) -> None:
    seen = []

    async def answer(scope, receive, send):
        seen.append(current_call.get())
        await send_json(send, 200, {})

    house.inner.answer = answer
    assert (await house.chat("red")).status_code == 200
    mortal.gate = None
    for _ in range(2):
        house.parts.suspects.blame(seen)
    refused = await house.chat("red")
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "poison_request")
    assert refused.headers["x-lorry-adapter"] == "red@1"
    assert house.log[-1]["outcome"] == "client_error"
    assert (await house.chat("green")).status_code == 200

"""The queue with real calls, a real residency and a stand-in engine, alone and over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from api_keys import key
from standin_server import BASE, Stats, attach, publish

from adapters.names import parse_reference
from server.call import Call, Sequence
from server.engine.interface import EngineRefusal, Work
from server.errors import AdapterUnusable, QueueIsFull, Unavailable
from server.gate import gate, queue
from server.gate.gate import FairAdmission
from server.gate.queue import Limits
from server.telemetry.recorder import Recorder


class Desk:
    """Makes calls and sends their requests to an admission."""

    def __init__(self, house: Any, **limits: Any) -> None:
        self.house = house
        given = {"sequences": 2, "adapters": 1, "prefill_tokens": 100, "slot_seconds": 0.0}
        self.gate = FairAdmission(Limits(**given | limits), house.residency, house.metrics)
        self._recorder = Recorder(BASE, house.metrics, house.tracing)

    def call(self, model: str | None = None, user: str = "") -> Call:
        call = self._recorder.start(
            request_id="", endpoint="/v1/completions", operation="text_completion", headers={}
        )
        call.resolved, call.user = True, user
        if model is not None:
            call.version = self.house.catalog.resolve(parse_reference(model))
        self.house.metrics.begin(call, None)
        return call

    def send(self, call: Call, prompt: int = 10) -> Request:
        return Request(self.gate, call, Work(f"id-{call.engine_id}", prompt, 1, 20))


class Request:
    """A request on its way through the gate: `entered` while it is inside, until `end`."""

    def __init__(self, gate: FairAdmission, call: Call, work: Work) -> None:
        self.call = call
        self.entered = asyncio.Event()
        self.sequence = Sequence(work.request_id, work.prompt, Stats())
        self._over = asyncio.Event()
        self.task = asyncio.create_task(self._run(gate, work))

    async def _run(self, gate: FairAdmission, work: Work) -> None:
        async with gate.enter(self.call, work) as lease:
            self.call.lease = lease
            self.call.sequences.append(self.sequence)
            self.entered.set()
            await self._over.wait()

    async def end(self) -> None:
        self.sequence.finish_reason = "stop"
        self._over.set()
        await self.task


@pytest.fixture
def desk(house):
    return Desk(house)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_call_enters_with_its_adapter_and_the_base_with_none(desk):
    red, base = desk.send(desk.call("red")), desk.send(desk.call())
    await asyncio.wait_for(red.entered.wait(), 1)
    await asyncio.wait_for(base.entered.wait(), 1)
    assert red.call.lease.engine_name.startswith("red@1#")
    assert red.call.load_ended >= red.call.load_started >= red.call.started
    assert base.call.lease is None
    assert base.call.load_started is None
    await red.end()
    again = desk.send(desk.call("red"))
    await again.entered.wait()
    assert again.call.load_started is None  # it was still resident
    await again.end()
    await base.end()
    assert desk.house.residency.residents[red.call.version.key].users == 0


async def test_another_adapter_gets_the_slot_when_those_inside_have_ended(desk):
    first = [desk.send(desk.call("red")) for _ in range(2)]
    await settled()
    later, green = desk.send(desk.call("red")), desk.send(desk.call("green"))
    await settled()
    assert desk.house.count("lorry_queue_depth", adapter="green", version="1") == 1
    await first[0].end()
    await settled()
    assert not later.entered.is_set()  # red's slot drains
    await first[1].end()
    await asyncio.wait_for(green.entered.wait(), 1)
    assert not later.entered.is_set()
    await green.end()
    await asyncio.wait_for(later.entered.wait(), 1)
    await later.end()
    waits = desk.house.count("lorry_queue_wait_seconds_count", adapter="red", version="1")
    assert waits == 3


async def test_who_has_read_nothing_yet_keeps_no_place_once_the_engine_is_done(desk):
    slow = [desk.send(desk.call("red")) for _ in range(2)]
    await settled()
    green = desk.send(desk.call("green"))
    for each in slow:
        each.sequence.finish_reason = "stop"  # but its caller has not read it
    desk.gate.step_made()
    await asyncio.wait_for(green.entered.wait(), 1)
    for each in (*slow, green):
        await each.end()


async def test_a_key_has_its_share_whatever_users_it_names(house):
    desk = Desk(house, sequences=1)
    waiting = []
    for number in range(12):
        for name, weight, user in (("many", 1.0, f"user-{number}"), ("heavy", 2.0, "")):
            call = desk.call(user=user)
            call.key = key(name, weight=weight)
            waiting.append(desk.send(call))
    await settled()
    order = []
    while waiting:
        (inside,) = (each for each in waiting if each.entered.is_set())
        waiting.remove(inside)
        order.append(inside.call.key.name)
        inside.sequence.stats.num_generation_tokens = 20
        await inside.end()
        await settled()
    assert 7 <= order[:12].count("heavy") <= 9  # two of three


async def test_output_is_charged_as_it_comes(desk):
    flood = [desk.send(desk.call(user="flood")) for _ in range(3)]
    quiet = [desk.send(desk.call(user="quiet")) for _ in range(2)]
    await settled()
    inside = [each for each in (*flood, *quiet) if each.entered.is_set()]
    assert inside == [flood[0], flood[1]]
    flood[0].sequence.stats.num_generation_tokens = 20
    await flood[0].end()
    await settled()
    assert quiet[0].entered.is_set()
    await quiet[0].end()
    await settled()
    assert quiet[1].entered.is_set()  # flood was served more, although it waits for longer
    for each in (flood[1], quiet[1], flood[2]):
        await each.end()


async def test_a_caller_that_hangs_up_leaves_at_once(desk):
    inside = [desk.send(desk.call()) for _ in range(2)]
    await settled()
    waiting = [desk.send(desk.call()) for _ in range(200)]
    await settled()
    assert desk.house.count("lorry_queue_depth", adapter="base", version="") == 200
    for each in waiting:
        each.task.cancel()
    await asyncio.gather(*(each.task for each in waiting), return_exceptions=True)
    assert desk.house.count("lorry_queue_depth", adapter="base", version="") == 0
    for each in inside:
        await each.end()
    last = desk.send(desk.call())
    await asyncio.wait_for(last.entered.wait(), 1)
    await last.end()


async def test_callers_and_calls_of_the_past_are_forgotten(desk, monkeypatch):
    monkeypatch.setattr(queue, "_IDLE_FLOWS", 2)
    monkeypatch.setattr(gate, "_RATE_SECONDS", 0.0)
    for number in range(6):
        request = desk.send(desk.call(user=f"user-{number}"))
        await request.entered.wait()
        await request.end()
    assert len(desk.gate._queue._served) == 2
    assert len(desk.gate._dispatched) == 1


async def test_who_hangs_up_when_its_turn_comes_does_not_enter(desk):
    inside = [desk.send(desk.call()) for _ in range(2)]
    await settled()
    gone = desk.send(desk.call())
    await settled()
    inside[0].sequence.finish_reason = "stop"
    gone.task.cancel()
    desk.gate.step_made()
    assert not desk.gate._queue.calls
    assert len(desk.gate._queue.inside) == 1
    await settled()
    assert desk.house.count("lorry_queue_wait_seconds_count", adapter="base", version="") == 2
    for each in inside:
        await each.end()


def test_nobody_joins_the_flow_of_an_address_by_its_user(desk):
    caller, impostor = desk.call(), desk.call(user="192.0.2.1")
    caller.caller = "192.0.2.1"
    assert caller.queue_flow != impostor.queue_flow


async def test_a_load_that_nobody_waits_for_any_more_frees_its_slot(desk):
    desk.house.engine.gate = asyncio.Event()
    red = desk.send(desk.call("red"))
    await settled()
    red.task.cancel()
    await settled()
    green = desk.send(desk.call("green"))
    desk.house.engine.gate.set()
    await asyncio.wait_for(green.entered.wait(), 1)
    await green.end()
    assert all(each.users == 0 for each in desk.house.residency.residents.values())


async def test_a_failed_load_fails_every_call_that_waits_for_it(desk):
    desk.house.engine.failures.append(EngineRefusal("too odd"))
    lost = [desk.send(desk.call("red")) for _ in range(3)]
    found = await asyncio.gather(*(each.task for each in lost), return_exceptions=True)
    assert [type(each) for each in found] == [AdapterUnusable] * 3
    red = desk.send(desk.call("red"))
    await asyncio.wait_for(red.entered.wait(), 1)
    await red.end()


async def test_nobody_enters_while_the_engine_is_away_and_adapters_are_loaded_anew(house):
    desk = Desk(house, sequences=1)
    before = desk.send(desk.call("red"))
    await before.entered.wait()
    waiting = [desk.send(desk.call(name)) for name in ("red", "green")]
    await settled()
    desk.gate.engine_lost()
    before.task.cancel()
    await settled()
    assert not any(each.entered.is_set() for each in waiting)
    desk.gate.engine_back()
    for each in reversed(waiting):
        await asyncio.wait_for(each.entered.wait(), 1)
        await each.end()
    assert waiting[0].call.lease.engine_name.startswith("red@1#")


async def test_who_waits_for_an_engine_that_does_not_come_back_is_refused(house):
    desk = Desk(house, sequences=1)
    before = desk.send(desk.call("red"))
    await before.entered.wait()
    waiting = [desk.send(desk.call(name)) for name in ("red", "green", None)]
    await settled()
    desk.gate.engine_lost()
    desk.gate.engine_ended()
    found = await asyncio.gather(*(each.task for each in waiting), return_exceptions=True)
    assert [(type(each), each.code) for each in found] == [(Unavailable, "engine_dead")] * 3
    assert all(each.call.waiting == 0 for each in waiting)
    with pytest.raises(Unavailable):
        await desk.send(desk.call()).task
    await before.end()


async def test_a_full_queue_says_when_to_come_again(house):
    desk = Desk(house, calls=2)
    async with AsyncExitStack() as stack:
        inside = [desk.send(desk.call()) for _ in range(2)]
        waiting = [desk.send(desk.call()) for _ in range(2)]
        await settled()
        with pytest.raises(QueueIsFull) as full:
            await stack.enter_async_context(desk.gate.enter(desk.call(), Work("x", 1, 1, 1)))
        headers = full.value.headers()
        assert 1 <= int(headers["retry-after"]) <= 120
        assert int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])
        assert headers["x-should-retry"] == "true"
        with pytest.raises(QueueIsFull):
            desk.gate.check_room(desk.call())
        stranger = desk.call(user="stranger")
        desk.gate.check_room(stranger)
        other = desk.send(stranger)
        with pytest.raises(QueueIsFull):
            await waiting[1].task  # it makes room
        for reason, times in (("calls", 2), ("displaced", 1)):
            labels = {"adapter": "base", "version": "", "reason": reason}
            assert house.count("lorry_queue_rejections_total", **labels) == times
    for each in (*inside, waiting[0], other):
        await each.entered.wait()
        await each.end()


# ---- over HTTP


async def test_a_refused_call_is_429_in_openais_envelope(house):
    settings = house.parts.settings
    house.parts.settings = settings.model_copy(update={"max_queue_calls": 1})
    house.engine.max_sequences = 1
    attach(house.parts, house.engine, house.inner)
    over = asyncio.Event()

    async def answer(scope, receive, send):
        await over.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    house.inner.answer = answer
    calls = [asyncio.create_task(house.chat()) for _ in range(2)]
    await settled()
    refused = await house.chat()
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert {"retry-after", "retry-after-ms", "x-should-retry"} <= refused.headers.keys()
    assert house.log[0]["outcome"] == "rejected"
    over.set()
    assert [each.status_code for each in await asyncio.gather(*calls)] == [200, 200]


async def test_a_call_for_tokens_loads_no_adapter_and_does_not_wait(house):
    body = {"model": "red", "prompt": "x"}
    house.inner.engine = None  # vLLM's handler asks the engine nothing
    answer = await house.client.post("/tokenize", json=body)
    assert answer.headers["x-lorry-adapter"] == "red@1"
    assert house.engine.asked == []


async def test_an_adapter_that_can_not_be_served_is_refused_before_it_waits(house):
    publish(house.catalog, "wide", rank=64)
    answer = await house.chat("wide")
    assert answer.json()["error"]["code"] == "adapter_unusable"
    assert house.inner.seen == []

"""Callers that hang up, stall or are cut off: each call is recorded and gives its lease back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sockets import served
from standin_answers import EVENT, Plain, Stream
from standin_server import scope_of
from starlette.responses import StreamingResponse

from server.http import bodies, exchange


class HangingUp:
    """A caller that hangs up when `gone` is set, as uvicorn reports it."""

    def __init__(self, body: bytes) -> None:
        self.messages = [{"type": "http.request", "body": body}]
        self.gone = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self):
        if self.messages:
            return self.messages.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)


def error_of(response: Any) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_a_caller_that_stops_reading_loses_its_lease(house, monkeypatch):
    monkeypatch.setattr(exchange, "SILENCE_SECONDS", 0.05)

    async def words():
        for _ in range(100):
            yield b"data: {}\n\n"

    body = {"type": "http.request", "body": b'{"model": "red", "messages": []}'}
    messages = asyncio.Queue()
    messages.put_nowait(body)
    got = []

    async def send(message):
        got.append(message["type"])
        if len(got) == 3:
            await asyncio.sleep(60)

    house.inner.answer = StreamingResponse(words(), media_type="text/event-stream")
    await house.app(scope_of("/v1/chat/completions"), messages.get, send)
    assert len(got) == 3
    assert house.log[0]["outcome"] == "aborted"
    assert house.lifecycle.in_flight == 0
    house.inner.answer = None
    # Two more adapters fit only if the first one's lease is gone: the capacity is 2.
    for model in ("green", "blue"):
        assert (await house.chat(model)).status_code == 200


async def test_a_body_that_stalls_is_a_408_and_never_in_flight(house, monkeypatch):
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 0.05)
    counted = []

    async def slow():
        yield b'{"model": '
        counted.append(house.lifecycle.in_flight)
        await asyncio.sleep(60)

    response = await house.client.post("/v1/completions", content=slow())
    assert (response.status_code, error_of(response)["code"]) == (408, "request_too_slow")
    assert counted == [0]
    assert house.log[0]["outcome"] == "client_error"


@pytest.mark.parametrize("app_sends_an_end", [True, False])
async def test_a_caller_that_hangs_up_is_recorded_as_aborted(house, app_sends_an_end):
    caller = HangingUp(b'{"model": "red", "stream": true}')

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        caller.gone.set()
        assert (await receive())["type"] == "http.disconnect"
        if app_sends_an_end:  # as vLLM does for a call that it cancelled
            await send({"type": "http.response.body", "body": b"null"})

    house.inner.answer = answer
    await house.app(scope_of("/v1/completions"), caller.receive, caller.send)

    assert house.log[0]["outcome"] == "aborted"
    labels = {"adapter": "red", "version": "1"}
    assert house.count("lorry_requests_in_flight", **labels) == 0
    counted = {"endpoint": "/v1/completions", "outcome": "aborted"}
    assert house.count("lorry_requests_total", **labels, **counted) == 1


async def test_a_call_ends_when_its_caller_hangs_up_during_the_load(house):
    house.engine.gate = asyncio.Event()
    caller = HangingUp(b'{"model": "red"}')
    call = asyncio.create_task(house.app(scope_of("/v1/completions"), caller.receive, caller.send))
    await asyncio.sleep(0.05)
    assert not call.done()
    caller.gone.set()
    await asyncio.wait_for(call, 1)
    assert house.log[0]["outcome"] == "aborted"
    assert house.inner.seen == []
    assert house.lifecycle.in_flight == 0
    house.engine.gate.set()
    assert (await house.chat("red")).status_code == 200
    assert house.engine.asked == [1]  # the load went on


async def test_a_caller_that_hangs_up_while_sending_its_body_is_aborted_too(house):
    caller = HangingUp(b"")
    caller.messages = []
    caller.gone.set()
    await house.app(scope_of("/v1/completions"), caller.receive, caller.send)

    assert house.log[0]["outcome"] == "aborted"
    assert caller.sent == []


async def test_a_cancelled_call_gives_its_lease_back(house):
    started = asyncio.Event()

    async def answer(scope, receive, send):
        started.set()
        await asyncio.sleep(60)

    house.inner.answer = answer
    call = asyncio.create_task(house.chat("red"))
    await started.wait()
    call.cancel()  # as the server does at the end of its drain
    response = await call
    assert (response.status_code, error_of(response)["code"]) == (503, "draining")
    assert response.headers["x-lorry-adapter"] == "red@1"
    assert house.log[0]["outcome"] == "rejected"
    house.inner.answer = None
    # Two more adapters fit only if the first one's lease is gone: the capacity is 2.
    for model in ("green", "blue"):
        assert (await house.chat(model)).status_code == 200
    assert house.engine.removed == [1]


async def test_two_hundred_callers_that_hang_up_leave_nothing_behind(house):
    stream, plain = Stream(), Plain()

    async def answer(scope, receive, send):
        await (stream if b"true" in house.inner.seen[-1][1] else plain)(scope, receive, send)

    house.inner.answer = answer
    async with served(house.app) as site:
        tasks = len(asyncio.all_tasks())
        for number in range(200):
            kind = ("body", "load", "answer", "stream")[number % 4]
            model = ("red", "green", "blue")[number % 3]
            house.engine.gate = asyncio.Event() if kind == "load" else None
            body = json.dumps({"model": model, "stream": kind == "stream"}).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            sent = body[:-1] if kind == "body" else body
            caller = await site.connect(head % len(body) + sent)
            if kind == "stream":
                await caller.reader.readuntil(EVENT)
            else:
                await asyncio.sleep(0.002)
            caller.writer.transport.abort()
            if house.engine.gate is not None:
                house.engine.gate.set()
        async with asyncio.timeout(10):
            while len(house.log) < 200 or len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert site.open == 0
    assert {record["outcome"] for record in house.log} == {"aborted"}
    assert (stream.begun, stream.ended) == (50, 50)
    assert plain.begun == plain.ended >= 25
    assert house.lifecycle.in_flight == 0
    assert [each.users for each in house.residency.residents.values()] == [0, 0]
    for adapter in ("red", "green", "blue"):
        assert house.count("lorry_requests_in_flight", adapter=adapter, version="1") == 0
    house.inner.answer = None
    for model in ("red", "green", "blue"):
        assert (await house.chat(model)).status_code == 200

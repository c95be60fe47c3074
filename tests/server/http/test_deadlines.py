"""`x-request-timeout` ends a call with an error, and frees what it holds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from opentelemetry.trace import StatusCode
from sockets import Served, served
from standin_answers import EVENT, Plain, Stream
from standin_server import BASE, House

from server.http import exchange

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "x"}]


@pytest.fixture
async def site(house: House) -> AsyncIterator[Served]:
    async with served(house.app) as site:
        yield site


@pytest.fixture
async def caller(site: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{site.port}") as caller:
        yield caller


def within(seconds: float | str) -> dict[str, str]:
    return {"x-request-timeout": str(seconds)}


async def ended(house: House, count: int = 1) -> dict[str, Any]:
    """The record of the last of `count` calls, once they have left nothing behind."""
    async with asyncio.timeout(5):
        while len(house.log) < count:  # noqa: ASYNC110 - the record follows the answer
            await asyncio.sleep(0.001)
    assert house.lifecycle.in_flight == 0
    assert not any(each.users for each in house.residency.residents.values())
    return house.log[-1]


def check_refusal(answer: httpx2.Response) -> None:
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "deadline_exceeded")
    assert "x-request-timeout" in error["message"]


BAD = ["0", "0.0", "-1", "abc", "1e3", "inf", "nan", "86400.1", "1.", ".5", "0x1", "1,2", "٣"]
GOOD = ["0.5", "30", "86400", "86400.0", "007"]


async def test_what_is_no_number_of_seconds_is_a_400_that_names_the_header(house):
    found = {}
    for value in ["", "1 2", *BAD]:
        answer = await house.chat(headers=[(b"x-request-timeout", value.encode())])
        error = answer.json().get("error", {})
        found[value] = answer.status_code, error.get("code"), error.get("param")
        assert "x-request-timeout" in error.get("message", "")
    assert found == dict.fromkeys(found, (400, "invalid_request", "x-request-timeout"))
    assert house.inner.seen == []


async def test_two_deadlines_are_a_400(house):
    twice = [("x-request-timeout", "1"), ("x-request-timeout", "2")]
    assert (await house.chat(headers=twice)).status_code == 400


async def test_an_answer_within_its_time_is_as_ever(house):
    answers = {value: await house.chat("red", headers=within(value)) for value in GOOD}
    assert {value: each.status_code for value, each in answers.items()} == dict.fromkeys(GOOD, 200)
    assert {record["outcome"] for record in house.log} == {"ok"}


async def test_a_body_that_does_not_come_in_time(house, site):
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nX-Request-Timeout: 0.05\r\n\r\n{"
    caller = await site.connect(head % COMPLETIONS.encode())
    answer = await caller.answer()
    assert (answer.status, answer.code) == (504, "deadline_exceeded")
    record = await ended(house)
    assert (record["outcome"], record["error_code"]) == ("rejected", "deadline_exceeded")
    assert house.inner.seen == []


async def test_a_load_that_takes_longer_goes_on_for_others(house, caller):
    house.engine.gate = asyncio.Event()
    check_refusal(await caller.post(CHAT, json=body("red"), headers=within(0.05)))
    assert (await ended(house))["outcome"] == "rejected"
    house.engine.gate.set()
    assert (await house.chat("red")).status_code == 200
    assert house.engine.asked == [1]


async def test_the_wait_for_a_slot_ends_and_the_slot_goes_to_the_next(house, caller):
    house.inner.answer = plain = Plain()
    slow = [
        asyncio.create_task(caller.post(CHAT, json=body("red"), headers=within(0.4)))
        for _ in range(2)  # in the only slot
    ]
    async with asyncio.timeout(5):
        while plain.begun < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    check_refusal(await caller.post(CHAT, json=body("blue"), headers=within(0.05)))
    assert house.log[-1]["adapter"] == "blue"
    assert plain.begun == 2
    for each in await asyncio.gather(*slow):
        check_refusal(each)
    await ended(house, 3)
    house.inner.answer = None
    assert (await house.chat("blue")).status_code == 200


async def test_an_answer_that_takes_longer_is_cancelled_as_if_its_caller_had_left(house, caller):
    house.inner.answer = plain = Plain()
    began = time.monotonic()
    answer = await caller.post(CHAT, json=body("red"), headers=within(0.1))
    assert 0.1 <= time.monotonic() - began < 1
    check_refusal(answer)  # and nothing of the `null` that vLLM sends for a cancelled call
    assert (plain.begun, plain.ended) == (1, 1)
    assert answer.headers["x-lorry-adapter"] == "red@1"
    record = await ended(house)
    assert (record["status"], record["outcome"]) == (504, "rejected")
    counted = {"endpoint": CHAT, "outcome": "rejected"}
    assert house.count("lorry_requests_total", adapter="red", version="1", **counted) == 1
    house.tracing.provider.force_flush()
    (span,) = (each for each in house.spans.get_finished_spans() if each.parent is None)
    assert span.attributes["error.type"] == "deadline_exceeded"
    assert span.status.status_code is StatusCode.UNSET
    house.inner.answer = None
    assert (await caller.post(CHAT, json=body("red"))).status_code == 200  # on the same connection


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_ends_with_an_error_event(house, caller, path):
    house.inner.answer = stream = Stream()
    answer = await caller.post(path, json=body("red", stream=True), headers=within(0.1))
    assert (answer.status_code, answer.headers["x-lorry-adapter"]) == (200, "red@1")
    *events, error, done, rest = answer.content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert events
    assert set(events) == {EVENT.strip()}
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
    assert (stream.begun, stream.ended) == (1, 1)
    record = await ended(house)
    assert (record["status"], record["outcome"]) == (200, "rejected")
    assert (record["error_code"], record["finish_reasons"]) == ("deadline_exceeded", ["abort"])


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_stream_of_named_events_ends_with_one_of_its_kind(house, caller, path):
    house.inner.answer = Stream()
    answer = await caller.post(path, json=body("red", stream=True), headers=within(0.5))
    *_, error, rest = answer.content.split(b"\n\n")
    name, data = error.split(b"\n")
    assert (name, rest) == (b"event: error", b"")
    event = json.loads(data.removeprefix(b"data: "))
    assert (event["type"], event["error"]["code"]) == ("error", "deadline_exceeded")


async def test_a_stream_that_has_not_begun_has_the_status_of_its_error(house, caller):
    house.inner.answer = stream = Stream(is_taken=False)
    check_refusal(await caller.post(CHAT, json=body(stream=True), headers=within(0.05)))
    assert (stream.begun, stream.ended) == (1, 1)


async def test_a_caller_that_does_not_read_holds_no_lease_either(house, site, monkeypatch):
    monkeypatch.setattr(exchange, "SILENCE_SECONDS", 1)
    house.inner.answer = stream = Stream(event=b"data: " + b"x" * 4_000_000 + b"\n\n")
    text = json.dumps(body("red", stream=True)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(text)}\r\nX-Request-Timeout: 0.1\r\n\r\n"
    await site.connect(head.encode() + text)
    async with asyncio.timeout(5):
        while not stream.ended or house.lifecycle.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not any(each.users for each in house.residency.residents.values())
    assert house.log == []  # the last event waits for its reader
    assert (await ended(house))["outcome"] == "rejected"


async def test_the_openai_client_does_not_try_again(house, site):
    house.inner.answer = Plain()
    url = f"http://127.0.0.1:{site.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=2) as client:
        ask = client.chat.completions.create
        with pytest.raises(openai.InternalServerError) as refused:
            await ask(model=BASE, messages=USER, extra_headers=within(0.05))
        assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")
        assert len(house.inner.seen) == 1
        house.inner.answer = Stream()
        stream = await ask(model=BASE, messages=USER, stream=True, extra_headers=within(0.1))
        with pytest.raises(openai.APIError) as cut:
            _ = [chunk async for chunk in stream]
        assert cut.value.code == "deadline_exceeded"


def body(model: str = BASE, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "messages": USER, "stream": stream}

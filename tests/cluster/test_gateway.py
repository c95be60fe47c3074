"""The gateway passes bytes on, and asks elsewhere while the caller has got none."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from aiohttp import web

EVENT = b'data: {"n": 1}\n\n'


def error_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def refusing(status: int, code: str) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response({"error": {"message": "no", "code": code}}, status=status)

    return answer


async def die(request: web.Request) -> web.StreamResponse:
    """The replica is lost after it has read the call."""
    await request.read()
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def stream_and_die(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    await response.write(EVENT)
    assert request.transport is not None
    await asyncio.sleep(0.05)
    request.transport.abort()
    return response


async def test_a_call_reaches_the_replica_as_it_was_sent(house):
    headers = {
        "authorization": "Bearer lk-x",
        "x-forwarded-for": "6.6.6.6",
        "te": "trailers",
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    body = json.dumps({"model": "orders@1", "prompt": "é"}).encode()
    answer = await house.http.post("/v1/completions?a=%2F1", content=body, headers=headers)
    assert answer.json() == {"by": "left"}
    assert answer.headers["x-lorry-replica"] == "left"
    (asked,) = house.replicas[0].asked
    assert (asked.raw_path, house.replicas[0].bodies) == ("/v1/completions?a=%2F1", [body])
    assert asked.headers["authorization"] == "Bearer lk-x"
    assert asked.headers["traceparent"] == headers["traceparent"]
    assert asked.headers.getall("x-forwarded-for") == ["127.0.0.1"]
    assert len(asked.headers["x-request-id"]) == 32
    assert "te" not in asked.headers
    assert "x-hop" not in asked.headers
    assert house.picker.models == ["orders@1"]


@pytest.mark.parametrize("target", ["*", "@127.0.0.1:9/", "http://127.0.0.1:9/v1/models"])
async def test_a_target_that_is_no_path_never_becomes_an_address(house, target):
    port = int(house.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"OPTIONS {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    status = int((await reader.read()).split()[1])
    writer.close()
    asked = [each.raw_path for each in house.replicas[0].asked]
    if target.startswith("http"):  # the form for proxies: its path counts, its host does not
        assert (status, asked) == (200, ["/v1/models"])
    else:
        assert (status in (400, 404), asked) == (True, [])


async def test_a_body_without_a_model_is_left_to_a_replica_to_refuse(house):
    for body in (b"{", b"[1]", b'{"model": 3}', b"", b"[" * 50_000, b"\xff"):
        assert (await house.http.post("/v1/completions", content=body)).status_code == 200
    assert house.picker.models == [None] * 6


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(house):
    assert error_of(await house.ask(prompt="x" * 200_000)) == (413, "request_too_large")
    assert house.replicas[0].asked == []


@pytest.mark.parametrize("fault", [die, refusing(503, "draining"), refusing(503, "engine_dead")])
async def test_a_call_of_which_nothing_was_sent_is_asked_elsewhere(house, fault):
    house.replicas[0].answer = fault
    answer = await house.ask()
    assert (answer.status_code, answer.json()) == (200, {"by": "right"})
    assert house.picker.suspects == ["left"]
    ids = {each.asked[0].headers["x-request-id"] for each in house.replicas}
    assert len(ids) == 1, "both tries have one id"
    text = (await house.http.get("/metrics")).text
    assert "lorry_gateway_retries_total 1.0" in text


async def test_a_replica_that_is_not_there_costs_a_call_nothing(house):
    await house.replicas[0].stop()
    assert (await house.ask()).json() == {"by": "right"}


async def test_a_stream_that_dies_before_its_first_piece_is_asked_elsewhere(house):
    async def head_only(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    house.replicas[0].answer = head_only
    assert (await house.ask(stream=True)).json() == {"by": "right"}


@pytest.mark.parametrize(
    ("status", "code"), [(429, "queue_full"), (404, "model_not_found"), (503, "adapters_busy")]
)
async def test_a_refusal_that_holds_for_the_caller_is_the_answer(house, status, code):
    house.replicas[0].answer = refusing(status, code)
    assert error_of(await house.ask()) == (status, code)
    assert house.replicas[1].asked == []


async def test_a_call_that_servers_are_lost_with_is_refused_after_the_third(house):
    for each in house.replicas:
        each.answer = die
    answer = await house.ask()
    assert error_of(answer) == (503, "replica_lost")
    assert answer.headers["retry-after"] == "60"
    assert sum(len(each.asked) for each in house.replicas) == 3


async def test_after_a_loss_too_a_call_does_not_wait_for_ever(house):
    async def die_once(request: web.Request) -> web.StreamResponse:
        house.replicas[0].answer = refusing(503, "starting")
        return await die(request)

    house.replicas[0].answer = die_once
    house.replicas[1].answer = refusing(503, "starting")
    assert error_of(await house.ask()) == (503, "no_replica")


async def test_an_answer_that_breaks_http_is_neither_repeated_nor_held_against_the_server(house):
    async def too_much(request: web.Request) -> web.StreamResponse:
        await request.read()
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * 200_000 + b"\r\n\r\n")
        return web.Response()

    house.replicas[0].answer = too_much
    assert error_of(await house.ask()) == (502, "bad_answer")
    assert (house.replicas[1].asked, house.picker.suspects) == ([], [])

    async def large(request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"access-control-allow-headers": "x" * 9_000})

    house.replicas[0].answer = large
    assert (await house.ask()).status_code == 200


async def test_the_bodies_of_running_calls_are_bounded(house):
    may_go_on = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await request.read()
        await may_go_on.wait()
        return web.json_response({})

    house.replicas[0].answer = wait
    first = asyncio.create_task(house.ask(prompt="x" * 90_000))
    await house.replicas[0].was_asked.wait()
    assert error_of(await house.ask(prompt="x" * 90_000)) == (503, "too_many_bodies")
    may_go_on.set()
    assert (await first).status_code == 200
    assert (await house.ask(prompt="x" * 90_000)).status_code == 200


async def test_calls_are_refused_when_no_replica_can_answer(house):
    for each in house.replicas:
        each.answer = refusing(503, "starting")
    answer = await house.ask()
    assert error_of(answer) == (503, "no_replica")
    assert answer.headers["retry-after"] == "5"
    house.picker.replicas = []
    assert error_of(await house.ask()) == (503, "no_replica")
    ready = await house.http.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "no_replica")
    assert "lorry_gateway_refusals_total 2.0" in (await house.http.get("/metrics")).text


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
async def test_a_stream_that_is_cut_ends_with_an_error_event(house, path):
    house.replicas[0].answer = stream_and_die
    answer = await house.http.post(path, json={"model": "orders", "stream": True})
    assert answer.status_code == 200
    assert answer.content.startswith(EVENT)
    assert b'"replica_lost"' in answer.content
    assert answer.content.endswith(b"[DONE]\n\n") == (path == "/v1/completions")
    assert house.replicas[1].asked == []
    assert "lorry_gateway_cut_answers_total 1.0" in (await house.http.get("/metrics")).text


async def test_a_long_answer_that_is_cut_is_incomplete(house):
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": str(4 << 20)})
        await response.prepare(request)
        await response.write(b"x" * (1 << 20))
        assert request.transport is not None
        await asyncio.sleep(0.05)
        request.transport.abort()
        return response

    house.replicas[0].answer = half
    with pytest.raises(httpx2.RemoteProtocolError):
        await house.ask()


async def test_pieces_pass_as_they_come(house):
    may_go_on = asyncio.Event()

    async def two_pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(EVENT)
        await may_go_on.wait()
        await response.write(EVENT)
        return response

    house.replicas[0].answer = two_pieces
    async with house.http.stream("POST", "/v1/completions", json={"model": "a"}) as answer:
        pieces = answer.aiter_raw()
        assert await anext(pieces) == EVENT
        may_go_on.set()
        assert await anext(pieces) == EVENT


async def test_a_caller_that_hangs_up_ends_its_call_at_the_replica(house):
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    house.replicas[0].answer = never
    asking = asyncio.create_task(house.ask())
    await house.replicas[0].was_asked.wait()
    asking.cancel()
    await asyncio.wait_for(house.replicas[0].hung_up.wait(), 10)
    assert house.picker.in_flight["left"] == 0


async def test_a_change_is_sent_once_and_its_body_is_not_held(house):
    async def pieces():
        for _ in range(30):  # three times what a call's body may have
            yield b"x" * 10_000

    answer = await house.http.post("/admin/adapters", content=pieces())
    assert answer.json() == {"by": "left"}
    assert len(house.replicas[0].bodies[0]) == 300_000

    house.replicas[0].answer = die
    lost = await house.http.post("/admin/adapters/orders/load")
    assert error_of(lost) == (503, "replica_lost")
    assert house.replicas[1].asked == []


async def test_a_question_that_changes_nothing_is_asked_elsewhere(house):
    house.replicas[0].answer = die
    assert (await house.http.get("/v1/models")).json() == {"by": "right"}


async def test_metrics_are_those_of_all_replicas_each_family_once(house):
    text = (await house.http.get("/metrics")).text
    assert text.count("# TYPE up gauge") == 1
    for name in ("left", "right"):
        assert f'up{{replica="{name}"}} 1.0' in text
        assert f'up{{replica="{name}",adapter="a"}} 2.0' in text
    await house.replicas[1].stop()
    assert 'replica="left"' in (await house.http.get("/metrics")).text


async def test_the_state_of_the_cluster_lists_every_replica(house):
    await house.replicas[1].stop()
    left, right = (await house.http.get("/cluster")).json()["replicas"]
    assert (left["name"], left["status"], left["in_flight"]) == ("left", "ready", 1)
    assert right["status"] == "unreachable"


async def test_the_state_is_shown_to_nobody_while_no_server_says_who_may_see_it(house):
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500)

    for each in house.replicas:
        await each.runner.cleanup()
        each.handle = handle
        await each.start()
    assert error_of(await house.http.get("/cluster")) == (503, "no_replica")


async def test_who_may_not_read_the_metrics_may_not_read_the_state(house):
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") == "Bearer lk-metrics":
            return web.Response(text="")
        return web.json_response({"error": {"code": "invalid_api_key"}}, status=401)

    for each in house.replicas:
        await each.runner.cleanup()
        each.handle = handle
        await each.start()
    for path in ("/cluster", "/metrics"):
        assert error_of(await house.http.get(path)) == (401, "invalid_api_key")
        allowed = await house.http.get(path, headers={"authorization": "Bearer lk-metrics"})
        assert allowed.status_code == 200
    assert (await house.http.get("/readyz")).status_code == 200

"""How the server ends: by a signal, killed, or when its engine is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from server_process import ServerProcess
from shop import BASE_NAME

BODY: dict[str, Any] = {"model": "orders-json", "prompt": "x", "max_tokens": 900, "stream": True}
BODY |= {"ignore_eos": True}
IN_FLIGHT = 'lorry_requests_in_flight{adapter="orders-json",version="1"}'


@pytest.fixture
def start(shop, tmp_path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server of the test's own, which the test ends."""
    servers: list[ServerProcess] = []

    def start(*flags: str) -> ServerProcess:
        shared = ("--served-model-name", BASE_NAME, "--max-loras", "1", "--max-cpu-loras", "2")
        eager = ("--", "--enforce-eager")
        server = ServerProcess(shop.base, shop.store, tmp_path / "log", *shared, *flags, *eager)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()


async def stream(server: ServerProcess, started: asyncio.Event, answers: int) -> list[str]:
    lines: list[str] = []
    async with (
        httpx2.AsyncClient(timeout=120) as client,
        client.stream(
            "POST", f"{server.url}/v1/completions", json=BODY | {"n": answers}
        ) as response,
    ):
        async for line in response.aiter_lines():
            lines += [line] if line else []
            if len(lines) >= 3:
                started.set()
    return lines


async def running_stream(server: ServerProcess, answers: int = 1) -> asyncio.Task[list[str]]:
    started = asyncio.Event()
    task = asyncio.create_task(stream(server, started, answers))
    await asyncio.wait_for(started.wait(), 60)
    return task


def call_cold(server: ServerProcess) -> httpx2.Response:
    body = BODY | {"model": "orders-sql", "stream": False}
    return httpx2.post(f"{server.url}/v1/completions", json=body, timeout=120)


def post(server: ServerProcess, **given: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/completions", json=BODY | given, timeout=120)


async def ready(server: ServerProcess, status: int) -> dict[str, Any]:
    """Waits until /readyz has this status; returns its body."""
    async with asyncio.timeout(30):
        while (answer := httpx2.get(f"{server.url}/readyz", timeout=5)).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return answer.json()


async def stall_and_resume(server: ServerProcess) -> None:
    """An idle engine that is stopped makes the server unready; it is ready again by itself."""
    os.kill(server.engine(), signal.SIGSTOP)
    assert (await ready(server, 503))["reason"] == "engine_stalled"
    assert server.metrics()["lorry_engine_up"] == 0
    assert server.metrics()["lorry_engine_silent_seconds"] >= 2
    refused = post(server)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_stalled")
    assert int(refused.headers["retry-after"]) > 0
    os.kill(server.engine(), signal.SIGCONT)
    await ready(server, 200)
    assert server.metrics()["lorry_engine_up"] == 1
    messages = [line["message"] for line in server.lines() if line["event"] == "log"]
    assert [sum(words in each for each in messages) for words in ("not answered", "again")] == [
        1,
        1,
    ]


async def test_the_engines_death_is_a_pause_until_it_dies_too_often(start):
    server = start("--engine-stall-seconds", "2", "--max-engine-restarts", "1").wait_ready()
    await stall_and_resume(server)
    begun = await running_stream(server)
    plain = asyncio.create_task(asyncio.to_thread(post, server, stream=False))
    while server.metrics().get(IN_FLIGHT) != 2:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    # A call that waits for a load: the stopped engine cannot finish it.
    engine = server.engine()
    os.kill(engine, signal.SIGSTOP)
    cold = asyncio.create_task(asyncio.to_thread(call_cold, server))
    in_flight = IN_FLIGHT.replace("orders-json", "orders-sql")
    while server.metrics().get(in_flight) != 1:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert server.metrics()[in_flight.replace("in_flight", "waiting")] == 1
    assert server.metrics()["lorry_oldest_waiting_seconds"] > 0

    os.kill(engine, signal.SIGKILL)
    lines = await asyncio.wait_for(begun, 10)
    assert '"code": "engine_dead"' in "".join(lines[-2:])
    assert len(lines) < BODY["max_tokens"]
    away = await ready(server, 503)
    assert (away["status"], away["reason"], away["in_flight"]) == ("restarting", "restarting", 2)
    assert httpx2.get(f"{server.url}/livez", timeout=5).status_code == 200
    assert server.metrics()["lorry_engine_up"] == 0
    late = asyncio.create_task(asyncio.to_thread(post, server, stream=False))
    for answered in await asyncio.wait_for(asyncio.gather(plain, cold, late), 120):
        assert answered.status_code == 200
        assert answered.json()["usage"]["completion_tokens"] == BODY["max_tokens"]
    assert (await ready(server, 200))["status"] == "ready"
    samples = server.metrics()
    assert samples["lorry_engine_restarts_total"] == samples["lorry_engine_up"] == 1
    tokens = {call["generation_tokens"] for call in server.calls() if call["status"] == 200}
    assert BODY["max_tokens"] in tokens

    plain = asyncio.create_task(asyncio.to_thread(post, server, stream=False))
    while server.metrics().get(IN_FLIGHT) != 1:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    os.kill(server.engine(), signal.SIGKILL)
    for refused in (await asyncio.wait_for(plain, 10), post(server)):
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_dead"
        assert int(refused.headers["retry-after"]) > 0
    assert server.process.wait(timeout=20) == 9
    assert server.wait_gone(5) == []
    outcomes = sorted(call["outcome"] for call in server.calls())
    assert outcomes == ["error", "ok", "ok", "ok", "rejected", "rejected", "rejected"]
    # Each line is JSON, the last ones of native libraries too; each death is logged once.
    faults = [line for line in server.lines() if "exception" in line]
    assert ["EngineDeadError" in fault["exception"] for fault in faults] == [True, True]


@pytest.mark.slow
def test_the_engine_ends_when_its_server_is_killed(start):
    server = start().wait_ready()
    assert len(server.group()) >= 2
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(timeout=10)
    assert server.wait_gone(10) == []


@pytest.mark.slow
async def test_an_answer_longer_than_the_drain_is_cut_off(start):
    server = start("--drain-seconds", "1").wait_ready()
    task = await running_stream(server, answers=64)
    os.kill(server.process.pid, signal.SIGTERM)  # the process alone, not its group
    assert server.process.wait(timeout=20) == 0
    assert server.wait_gone(5) == []
    (cut,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(cut, httpx2.TransportError) or cut[-1] != "data: [DONE]"
    assert [call["outcome"] for call in server.calls()] == ["aborted"]


@pytest.mark.slow
def test_a_server_stopped_while_starting_ends_at_once(start):
    server = start()
    deadline = time.monotonic() + 30
    while "importing" not in server.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    ready = httpx2.get(f"{server.url}/readyz", timeout=10)
    assert (ready.status_code, ready.json()["status"]) == (503, "starting")
    early = httpx2.post(f"{server.url}/v1/completions", json=BODY, timeout=10)
    assert early.json()["error"]["code"] == "starting"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=10) == 0
    assert server.wait_gone(10) == []


async def test_sigint_drains_the_shared_server_and_leaves_no_process(server):
    """Runs last, because it ends the shared server, as Ctrl-C does."""
    task = await running_stream(server)
    os.killpg(server.process.pid, signal.SIGINT)
    await asyncio.sleep(0.3)
    refused = httpx2.post(f"{server.url}/v1/completions", json=BODY, timeout=5)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert httpx2.get(f"{server.url}/readyz", timeout=5).status_code == 503
    assert httpx2.get(f"{server.url}/livez", timeout=5).status_code == 200

    lines = await asyncio.wait_for(task, 60)
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in "".join(lines[-3:])
    began = time.monotonic()
    assert server.process.wait(timeout=30) == 0
    assert server.wait_gone(5) == []
    assert time.monotonic() - began < 15
    assert server.calls()[-1]["outcome"] in ("ok", "rejected")

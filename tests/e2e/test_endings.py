"""How the server ends: asked to, killed, bereft of its engine; mostly with servers of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from server_process import ServerProcess
from shop import BASE_NAME

BODY: dict[str, Any] = {"model": "orders-json", "prompt": "x", "max_tokens": 900, "stream": True}
BODY |= {"ignore_eos": True}


@pytest.fixture
def three_servers(shop, tmp_path) -> Iterator[list[ServerProcess]]:
    """Started side by side; the last gives running answers one second when it is stopped."""
    flags = ("--served-model-name", BASE_NAME, "--max-loras", "1", "--max-cpu-loras", "2")
    servers = [
        ServerProcess(shop.base, shop.store, tmp_path / f"log{i}", *flags, *drain)
        for i, drain in enumerate(((), (), ("--drain-seconds", "1")))
    ]
    try:
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
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


async def test_death_of_the_engine_of_the_server_and_of_patience_leave_nothing_behind(
    three_servers,
):
    bereft, killed, hurried = three_servers

    # The engine dies: running calls hear of it, new ones are sent away, the process ends as 9.
    task = await running_stream(bereft)
    # So does a call whose adapter it was loading; it is stopped first, so that it surely was.
    engine = bereft.engine()
    os.kill(engine, signal.SIGSTOP)
    cold = asyncio.create_task(asyncio.to_thread(call_cold, bereft))
    in_flight = 'lorry_requests_in_flight{adapter="orders-sql",version="1"}'
    while bereft.metrics().get(in_flight) != 1:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert bereft.metrics()[in_flight.replace("in_flight", "waiting")] == 1
    assert bereft.metrics()["lorry_oldest_waiting_seconds"] > 0
    os.kill(engine, signal.SIGKILL)
    failed = await asyncio.wait_for(cold, 20)
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "adapter_load_failed")
    lines = await asyncio.wait_for(task, 10)
    assert '"code": "engine_dead"' in "".join(lines[-2:])
    assert len(lines) < BODY["max_tokens"]
    refused = httpx2.post(f"{bereft.url}/v1/completions", json=BODY, timeout=5)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_dead"
    assert int(refused.headers["retry-after"]) > 0
    assert bereft.process.wait(timeout=20) == 9
    assert bereft.wait_gone(5) == []
    outcomes = sorted(call["outcome"] for call in bereft.calls())
    assert outcomes == ["error", "rejected", "rejected"]

    # The server is killed: its engine notices and goes.
    assert len(killed.group()) >= 2
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait(timeout=10)
    assert killed.wait_gone(10) == []

    # The process alone is asked to stop, and an answer takes longer than it may.
    task = await running_stream(hurried, answers=64)
    os.kill(hurried.process.pid, signal.SIGTERM)
    assert hurried.process.wait(timeout=20) == 0
    assert hurried.wait_gone(5) == []
    (cut,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(cut, httpx2.TransportError) or cut[-1] != "data: [DONE]"
    assert [call["outcome"] for call in hurried.calls()] == ["aborted"]


def test_a_server_that_is_stopped_while_it_starts_goes_at_once(shop, tmp_path):
    server = ServerProcess(shop.base, shop.store, tmp_path / "log")
    try:
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
    finally:
        server.kill()


async def test_the_shared_server_lets_answers_finish_and_then_everything_is_gone(server):
    """Last of all: it ends the server that the other tests share, as Ctrl-C does."""
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

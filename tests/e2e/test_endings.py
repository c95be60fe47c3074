"""How the server ends: asked to, killed, or bereft of its engine. Two servers of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import httpx2
import pytest
from server_process import ServerProcess
from shop import BASE_NAME

BODY = {"model": "orders-json", "prompt": "x", "max_tokens": 400, "stream": True}
BODY |= {"ignore_eos": True, "temperature": 0}


@pytest.fixture
def two_servers(shop, tmp_path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    flags = ("--served-model-name", BASE_NAME, "--max-loras", "1", "--max-cpu-loras", "2")
    pair = [ServerProcess(shop.base, shop.store, tmp_path / f"log{i}", *flags) for i in range(2)]
    try:
        yield pair[0].wait_ready(), pair[1].wait_ready()
    finally:
        for server in pair:
            server.kill()


async def stream(server: ServerProcess, started: asyncio.Event) -> list[str]:
    lines: list[str] = []
    async with (
        httpx2.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{server.url}/v1/completions", json=BODY) as response,
    ):
        async for line in response.aiter_lines():
            lines += [line] if line else []
            if len(lines) >= 3:
                started.set()
    return lines


async def running_stream(server: ServerProcess) -> asyncio.Task[list[str]]:
    started = asyncio.Event()
    task = asyncio.create_task(stream(server, started))
    await asyncio.wait_for(started.wait(), 60)
    return task


async def test_the_engines_death_and_the_servers_own_leave_nothing_behind(two_servers):
    bereft, killed = two_servers

    # The engine dies: running calls hear of it, new ones are sent away, the process ends as 9.
    task = await running_stream(bereft)
    os.kill(bereft.engine(), signal.SIGKILL)
    lines = await asyncio.wait_for(task, 10)
    assert '"error"' in "".join(lines[-2:])
    assert len(lines) < 400
    try:
        refused = httpx2.post(f"{bereft.url}/v1/completions", json=BODY, timeout=5)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_dead"
        assert int(refused.headers["retry-after"]) > 0
    except httpx2.TransportError:
        pass  # it had ended by then
    assert bereft.process.wait(timeout=20) == 9
    assert bereft.wait_gone(5) == []
    assert bereft.calls()[0]["outcome"] == "error"

    # The server is killed: its engine notices and goes.
    assert len(killed.group()) >= 2
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait(timeout=10)
    assert killed.wait_gone(10) == []


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

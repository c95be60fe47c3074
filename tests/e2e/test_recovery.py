"""The engine's process ends in every way, under load, again and again: calls only wait.

Each test starts a server of its own, because it ends the engine or the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import poison
import pytest
from asking_load import Load
from otlp_receiver import OtlpReceiver, attributes
from server_process import ServerProcess
from shop import ADAPTERS, BASE_NAME

pytestmark = pytest.mark.slow
KILLS = 10


@pytest.fixture
def start(shop, tmp_path) -> Iterator[Callable[..., ServerProcess]]:
    servers: list[ServerProcess] = []

    def start(*flags: str, env: dict[str, str] | None = None) -> ServerProcess:
        shared = ("--served-model-name", BASE_NAME, "--max-loras", "2", "--max-cpu-loras", "3")
        server = ServerProcess(shop.base, shop.store, tmp_path / "log", *shared, *flags, env=env)
        servers.append(server)
        return server.wait_ready()

    yield start
    for server in servers:
        server.kill()


async def status(server: ServerProcess) -> dict[str, Any]:
    async with httpx2.AsyncClient(timeout=30) as client:
        answer = await client.get(f"{server.url}/readyz")
    return answer.json()


async def becomes(server: ServerProcess, wanted: str, within: float = 120) -> float:
    """Waits until /readyz says `wanted`; returns how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(within):
        while (await status(server))["status"] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def kill_and_recover(server: ServerProcess) -> float:
    """Seconds from SIGKILL of the engine to a server that is ready."""
    began = time.monotonic()
    os.kill(server.engine(), signal.SIGKILL)
    await becomes(server, "restarting")
    await becomes(server, "ready")
    return time.monotonic() - began


def own_start(server: ServerProcess) -> float:
    """Seconds that the engine took to start with the server."""
    times = {
        word: datetime.fromisoformat(line["time"])
        for line in server.lines()
        for word in ("starting the engine", "loading pinned adapters")
        if line.get("message", "").startswith(word)
    }
    begun, ended = times.values()
    return (ended - begun).total_seconds()


def prompts_of(shop: Any) -> dict[str, list[str]]:
    of_adapters = {name: [prompt for prompt, _ in shop.heldout(name, 8)] for name in ADAPTERS}
    return of_adapters | {BASE_NAME: ["two blue lamps to Oslo", "hello"]}


def samples_of(server: ServerProcess, name: str, **labels: str) -> float:
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        value
        for series, value in server.metrics().items()
        if series.startswith(name) and all(each in series for each in wanted)
    )


async def test_ten_kills_under_load_fail_no_call_that_has_not_begun(start, shop, record_property):
    receiver = OtlpReceiver()
    exporter = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}"}
    server = start("--max-engine-restarts", str(KILLS), env=exporter)
    load = Load(server, prompts_of(shop))
    took = []
    async with load.running(callers=12):
        for kill in range(KILLS):
            # At any moment of the load: with calls in their prompt, in their answer, in the queue.
            await asyncio.sleep(random.Random(kill).uniform(0.5, 6))
            took.append(await kill_and_recover(server))
    load.check_answers()
    begun = sum(bool(each.failed) for each in load.outcomes)
    record_property("calls", len(load.outcomes))
    record_property("begun streams that ended", begun)
    record_property("seconds from the kill to ready", [round(each, 1) for each in took])
    record_property("seconds of the engine's own start", round(own_start(server), 1))
    assert len(load.outcomes) > 12 * KILLS / 2
    assert server.metrics()["lorry_engine_restarts_total"] == KILLS

    # Client, metrics, log and spans agree on every call.
    traces = {each.trace for each in load.outcomes}
    assert len(traces) == len(load.outcomes)
    spans = receiver.wait_for(traces)
    lines = {line["trace_id"]: line for line in server.calls()}
    for each in load.outcomes:
        outcome = "error" if each.failed else "ok"
        span, line = attributes(spans[each.trace]), lines[each.trace]
        assert line["outcome"] == span["lorry.outcome"] == outcome
        assert line["generation_tokens"] == span["gen_ai.usage.output_tokens"]
        if not each.failed:
            assert line["generation_tokens"] == each.tokens
    counted = Counter("error" if each.failed else "ok" for each in load.outcomes)
    for outcome, number in counted.items():
        assert samples_of(server, "lorry_requests_total", outcome=outcome) == number
    tokens = sum(lines[trace]["generation_tokens"] for trace in traces)
    assert samples_of(server, "lorry_generation_tokens_total") == tokens
    assert samples_of(server, "lorry_requests_in_flight") == 0
    receiver.close()


async def test_killed_while_idle_it_is_back_with_what_was_resident_and_pinned(
    start, shop, record_property
):
    server = start(env={"LORRY_ADMIN_TOKEN": "a-token-of-the-tests"})
    headers = {"authorization": "Bearer a-token-of-the-tests"}
    pinned = httpx2.post(
        f"{server.url}/admin/adapters/orders-sql/versions/1/pin", headers=headers, timeout=30
    )
    assert pinned.status_code == 200, pinned.text
    load = Load(server, prompts_of(shop))
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        await load.ask(client, "orders-json", load.prompts["orders-json"][0], stream=False)
        took = [await kill_and_recover(server)]
        for name in ("orders-sql", "orders-json"):
            assert samples_of(server, "lorry_adapter_resident", adapter=name, tier="host") == 1
        await load.ask(client, "orders-json", load.prompts["orders-json"][0], stream=True)
    load.check_answers()
    assert [each.text for each in load.outcomes[:1]] == [each.text for each in load.outcomes[1:]]
    assert not load.outcomes[1].failed
    assert [call["cold_start"] for call in server.calls()] == [True, False]
    for _ in range(4):
        await asyncio.sleep(6)  # no pause before the restart
        took.append(await kill_and_recover(server))
    record_property("seconds from the kill to ready", [round(each, 1) for each in took])
    record_property("seconds of the engine's own start", round(own_start(server), 1))
    assert statistics.median(took) <= own_start(server) + 5


async def test_a_pause_of_thirty_seconds_kills_nothing(start, shop):
    server = start("--engine-stall-seconds", "5")
    load = Load(server, prompts_of(shop))
    engine = server.engine()
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        os.kill(engine, signal.SIGSTOP)
        call = asyncio.create_task(load.ask(client, BASE_NAME, "hello", stream=False))
        await becomes(server, "impaired")
        await asyncio.sleep(25)
        os.kill(engine, signal.SIGCONT)
        await becomes(server, "ready")
        assert (await call).status == 200
    assert server.engine() == engine
    assert server.metrics()["lorry_engine_restarts_total"] == 0


async def test_an_engine_that_hangs_is_killed_and_started_again(start, shop):
    server = start("--engine-stall-seconds", "2", "--engine-hang-seconds", "5")
    load = Load(server, prompts_of(shop))
    engine = server.engine()
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        call = asyncio.create_task(
            load.ask(client, BASE_NAME, "hello", False, max_tokens=900, ignore_eos=True)
        )
        await asyncio.sleep(0.5)
        os.kill(engine, signal.SIGSTOP)
        await becomes(server, "impaired")
        await becomes(server, "restarting", within=15)
        await becomes(server, "ready")
        assert (await call).tokens == 900
    assert server.engine() != engine
    messages = [line["message"] for line in server.lines() if line["event"] == "log"]
    assert any("it hung and was killed" in each for each in messages)


@pytest.mark.parametrize("signals", ["server", "group"])
async def test_a_server_stopped_while_the_engine_restarts_ends_with_0(start, shop, signals):
    server = start("--drain-seconds", "3")
    os.kill(server.engine(), signal.SIGKILL)
    await becomes(server, "restarting")
    load = Load(server, prompts_of(shop))
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        call = asyncio.create_task(load.ask(client, BASE_NAME, "hello", stream=False))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        if signals == "group":
            os.killpg(server.process.pid, signal.SIGTERM)
        else:
            os.kill(server.process.pid, signal.SIGTERM)
        outcome = await call
    assert outcome.status == 200 or "draining" in outcome.failed
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    assert server.wait_gone(5) == []
    assert time.monotonic() - began < 12


async def test_a_failed_start_and_more_deaths_than_allowed_end_with_9(start):
    server = start("--max-engine-restarts", "2")
    for _ in range(2):
        await kill_and_recover(server)
    os.kill(server.engine(), signal.SIGKILL)
    assert await asyncio.to_thread(server.process.wait, 20) == 9
    assert server.wait_gone(5) == []


@pytest.mark.parametrize("how", ["raises", "aborts"])
async def test_a_request_that_ends_the_engine_is_found_among_others(start, shop, tmp_path, how):
    server = start(env=poison.environment(tmp_path / "plugin"))
    load = Load(server, prompts_of(shop))
    client = httpx2.AsyncClient(base_url=server.url, timeout=300)
    async with load.running(callers=6), client:
        await asyncio.sleep(2)
        bad = {"seed": poison.SEEDS[how], "user": "mallory"}
        outcome = await load.ask(client, "orders-sql", "poison", False, **bad)
        load.outcomes.remove(outcome)
        again = await load.ask(client, "orders-sql", "poison", False, **bad)
        load.outcomes.remove(again)
        await asyncio.sleep(2)
    for each in (outcome, again):
        assert each.status == 422
        assert "poison_request" in each.failed
    load.check_answers()
    assert server.metrics()["lorry_engine_restarts_total"] == 3
    (line,) = [each for each in server.lines() if each.get("logger") == "lorry.suspects"]
    assert "orders-sql@1" in line["message"]


async def test_a_lone_request_that_ends_the_engine_gets_no_third_try(start, shop, tmp_path):
    server = start(
        *("--engine-stall-seconds", "2", "--engine-hang-seconds", "4"),
        env=poison.environment(tmp_path / "plugin"),
    )
    load = Load(server, prompts_of(shop))
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as client:
        for how in ("raises", "hangs"):
            bad = await load.ask(client, BASE_NAME, "hello", False, seed=poison.SEEDS[how])
            assert bad.status == 422
        good = await load.ask(client, BASE_NAME, "hello", False, seed=1)
    assert good.status == 200
    assert server.metrics()["lorry_engine_restarts_total"] == 4


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group whose memory can be limited."""
    root = Path("/sys/fs/cgroup/memory")  # version 1
    group = root / f"lorry-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory group can be made here: {error}")
    yield group
    with contextlib.suppress(OSError):
        group.rmdir()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_the_kernels_kill_for_memory_is_blamed_on_the_request(
    start, shop, tmp_path, memory_group
):
    server = start("--max-engine-restarts", "3", env=poison.environment(tmp_path / "plugin"))
    load = Load(server, prompts_of(shop))
    limit = resident_bytes(server.engine()) + (1 << 30)
    (memory_group / "memory.limit_in_bytes").write_text(str(limit))

    async def confine() -> None:
        """Keeps each engine of the server in the group."""
        for _ in itertools.count():
            with contextlib.suppress(OSError, ValueError):
                (memory_group / "cgroup.procs").write_text(str(server.engine()))
            await asyncio.sleep(0.2)

    confining = asyncio.create_task(confine())
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as client:
        seed = poison.SEEDS["eats memory"]
        await asyncio.sleep(1)
        bad = await load.ask(client, BASE_NAME, "hello", False, seed=seed)
        good = await load.ask(client, BASE_NAME, "hello", False, seed=1)
    confining.cancel()
    assert (bad.status, good.status) == (422, 200)
    assert server.metrics()["lorry_engine_restarts_total"] == 2
    assert "ran out of memory" in server.log.read_text()

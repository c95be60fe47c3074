"""Usage on the real engine: it agrees with callers, log and metrics, whatever ends calls.

With a store and servers of its own, as keys shut a server, and as it ends engine and servers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_keys import make_key
from server_process import ServerProcess
from shop import ADAPTERS, BASE, BASE_NAME, keep_shop

from adapters.catalog import Catalog
from adapters.keys import Budget, RateLimits

pytestmark = pytest.mark.slow
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
MODELS = (BASE_NAME, *ADAPTERS)
TOKENS = ("prompt_tokens", "generation_tokens", "cached_prompt_tokens")
WRITTEN_SECONDS = 10.0  # two, and more on a busy machine


class Caller:
    """One key's calls, and what their answers said."""

    def __init__(self, server: ServerProcess, headers: dict[str, str]) -> None:
        self.http = httpx2.AsyncClient(base_url=server.url, headers=headers, timeout=300)
        self.statuses: dict[int, int] = defaultdict(int)
        self.generated: dict[str, int] = defaultdict(int)  # by model, of answers that were whole

    async def ask(self, model: str, tokens: int, *, stream: bool, hang_up: bool = False) -> None:
        body: dict[str, Any] = {"model": model, "prompt": "two lamps", "max_tokens": tokens}
        body |= {"ignore_eos": True, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            self.statuses[answer.status_code] += 1
            if not stream or answer.status_code != 200:
                whole = await answer.aread()
                if answer.status_code == 200:
                    usage = httpx2.Response(200, content=whole).json()["usage"]
                    self.generated[model] += usage["completion_tokens"]
                return
            async for line in answer.aiter_lines():
                if hang_up and line:
                    return
                if line.startswith("data: {"):
                    chunk = httpx2.Response(200, content=line[6:]).json()
                    if usage := chunk.get("usage"):
                        self.generated[model] += usage["completion_tokens"]


def usage_of(store: Path, *by: Any) -> dict[Any, dict[str, Any]]:
    with Catalog.open(store, create=False) as catalog:
        rows = catalog.usage.report(by, EPOCH)
    return {tuple(row[name] for name in by): row for row in rows}


def wait_until(what: Callable[[], bool], seconds: float = WRITTEN_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def key_tokens(server: ServerProcess, headers: dict[str, str]) -> dict[tuple[str, str], float]:
    text = httpx2.get(f"{server.url}/metrics", headers=headers, timeout=10).text
    found = {}
    for line in text.splitlines():
        if line.startswith("lorry_key_tokens_total{"):
            series, _, value = line.rpartition(" ")
            labels = dict(each.split("=") for each in series.partition("{")[2][:-1].split(","))
            found[labels["key"].strip('"'), labels["kind"].strip('"')] = float(value)
    return found


async def mixed_run(server: ServerProcess, ann: Caller, bob: Caller) -> None:
    """Answers, streams, callers that hang up, an unknown model, refusals, a kill of the engine."""
    running = [
        caller.ask(
            model,
            600 if number == 4 else 16 + number,
            stream=number % 2 == 0,
            hang_up=number == 4,
        )
        for caller in (ann, bob)
        for number in range(6)
        for model in MODELS
    ]
    calls = [asyncio.ensure_future(each) for each in running]
    calls.append(asyncio.ensure_future(ann.ask("nobody", 1, stream=False)))
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    os.kill(server.engine(), signal.SIGKILL)
    await asyncio.gather(*calls)
    async with asyncio.timeout(30):
        while (await ann.http.get("/readyz")).json()["in_flight"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_usage_agrees_with_callers_log_and_metrics_and_outlives_servers(tmp_path):
    store = tmp_path / "store"
    keep_shop(store)
    with Catalog.open(store) as catalog:
        every = {"adapters": ("*",), "base": True}
        ann = make_key(catalog, "ann", **every)
        bob = make_key(catalog, "bob", **every, limits=RateLimits(requests_per_minute=20))
        limits = RateLimits(budget=Budget(60, "month"))
        cid = make_key(catalog, "cid", **every, limits=limits)
        scrape = make_key(catalog, "scrape", scopes=frozenset({"metrics"}))
    flags = ("--served-model-name", BASE_NAME, "--max-loras", "3", "--log-format", "json")
    server = ServerProcess(BASE, store, tmp_path / "log", *flags).wait_ready()
    callers = {"ann": Caller(server, ann), "bob": Caller(server, bob)}
    spender = Caller(server, cid)
    try:
        await mixed_run(server, *callers.values())
        await spender.ask(BASE_NAME, 40, stream=True)
        for each in (*callers.values(), spender):
            await each.http.aclose()
        counted = key_tokens(server, scrape)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 60) == 0
        assert time.monotonic() - began < 30
        check(usage_of(store, "key", "adapter"), server, callers)
        for (key,), row in usage_of(store, "key").items():
            if key in callers:
                kinds = [name.removesuffix("_tokens") for name in TOKENS]
                assert [counted[key, kind] for kind in kinds] == [row[name] for name in TOKENS]
                assert row["engine_seconds"] > 0
        assert callers["bob"].statuses[429] == 4

        server = ServerProcess(BASE, store, tmp_path / "log", *flags).wait_ready()
        spender, again = Caller(server, cid), Caller(server, ann)
        await spender.ask(BASE_NAME, 40, stream=False)
        assert dict(spender.statuses) == {429: 1}, "the budget outlives the server"
        before = usage_of(store, "key")["ann",]["generation_tokens"]
        await again.ask(BASE_NAME, 7, stream=False)
        for each in (spender, again):
            await each.http.aclose()
        wait_until(lambda: usage_of(store, "key")["ann",]["generation_tokens"] == before + 7)
    finally:
        server.kill()  # SIGKILL: what was written stays
    assert usage_of(store, "key")["ann",]["generation_tokens"] == before + 7


def check(
    usage: dict[Any, dict[str, Any]], server: ServerProcess, callers: dict[str, Caller]
) -> None:
    """The log has a line for each call; a caller has read the counts of its whole answers."""
    lines = [line for line in server.calls() if line["key"] in callers]
    for key, caller in callers.items():
        assert sum(caller.statuses.values()) == sum(line["key"] == key for line in lines)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["key"], line["adapter"]].append(line)
    assert {id_ for id_ in usage if id_[0] in callers} == set(groups)
    outcomes = {line["outcome"] for line in lines}
    assert {"ok", "aborted", "rejected", "client_error"} <= outcomes
    for id_, of_group in groups.items():
        row = usage[id_]
        assert row["calls"] == len(of_group)
        assert row["failed"] == sum(line["outcome"] != "ok" for line in of_group)
        for name in TOKENS:
            assert row[name] == sum(line[name] for line in of_group), (id_, name)
        model = BASE_NAME if id_[1] == "base" else id_[1]
        whole = sum(line["generation_tokens"] for line in of_group if line["outcome"] == "ok")
        assert callers[id_[0]].generated[model] == whole

"""A router that compares a request's `model` exactly finds the server that holds the adapter."""

from __future__ import annotations

import asyncio
import threading

import pytest
from gateway_router import Endpoint, read_endpoint
from prometheus_client.parser import text_string_to_metric_families
from standin_server import publish

from adapters.catalog import Alias, Target
from server.residency import routers
from server.residency.routers import MOST_SPELLINGS, spell


async def look(house) -> Endpoint:
    return read_endpoint((await house.client.get("/metrics")).text)


async def loaded(house) -> list[dict[str, str]]:
    text = (await house.client.get("/metrics")).text
    return [
        sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm:lora_adapter_loaded"
    ]


class Gate(asyncio.Event):
    """Tells when a load waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def wait(self) -> bool:
        self.reached.set()
        return await super().wait()


class Held:
    """A call that runs until it is let go."""

    def __init__(self, house, model: str) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self.house, self.model = house, model

    async def __aenter__(self) -> None:
        async def answer(scope, receive, send):
            self.reached.set()
            await self.go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        self.house.inner.answer = answer
        self.task = asyncio.create_task(self.house.chat(self.model))
        await asyncio.wait_for(self.reached.wait(), 5)

    async def __aexit__(self, *_: object) -> None:
        self.house.inner.answer = None
        self.go.set()
        await self.task


@pytest.mark.parametrize(
    ("aliases", "names"),
    [
        ([], ["red@1"]),
        ([("stable", {1: 1})], ["red", "red@1", "red@stable"]),
        ([("canary", {1: 1}), ("stable", {2: 1})], ["red@1", "red@canary"]),
        (
            [("canary", {1: 1}), ("stable", {1: 90, 2: 10})],
            ["red", "red@1", "red@stable", "red@canary"],
        ),
        ([("stable", {2: 1})], ["red@1"]),
    ],
)
async def test_a_version_is_spelt_as_callers_may(house, aliases, names):
    (red,) = house.catalog.list_versions("red")
    pointing = [
        Alias("red", alias, tuple(Target(number, weight) for number, weight in targets.items()))
        for alias, targets in aliases
    ]
    assert spell(red, pointing) == names


async def test_a_version_of_many_aliases_keeps_its_plain_names(house):
    (red,) = house.catalog.list_versions("red")
    many = [Alias("red", f"a{n}", (Target(1, 1),)) for n in range(100)]
    spelt = spell(red, [*many, Alias("red", "stable", (Target(1, 1),))])
    assert len(spelt) == MOST_SPELLINGS
    assert spelt[:3] == ["red", "red@1", "red@stable"]


async def test_a_router_finds_what_runs_by_each_name_until_the_alias_moves(house):
    async with Held(house, "red"):
        seen = await look(house)
        assert seen.active == {"red", "red@1", "red@stable"}
        assert seen.most == 1
        assert [seen.score(name) for name in ("red", "red@1", "red@stable")] == [1.0] * 3
        assert seen.score("green") == seen.score("red@2") == 0.0

        publish(house.catalog, "red", content="newer")  # `stable` moves to it
        seen = await look(house)
        assert seen.active == {"red@1"}
        assert seen.score("red") == 0.0

        house.catalog.split("red", "stable", {1: 50, 2: 50}, actor="test")
        house.catalog.point("red", "old", 1, actor="test")
        assert (await look(house)).active == {"red", "red@1", "red@stable", "red@old"}
    assert (await look(house)).active == set()


async def test_what_waits_is_named_apart_from_what_runs(house):
    house.engine.gate = Gate()
    waiting = asyncio.create_task(house.chat("red@stable"))
    await asyncio.wait_for(house.engine.gate.reached.wait(), 5)
    seen = await look(house)
    assert (seen.active, seen.waiting) == (set(), {"red", "red@1", "red@stable"})
    assert seen.loaded == {}  # it is not loaded yet
    house.engine.gate.set()
    await waiting


async def test_what_is_loaded_stays_named_when_nothing_runs(house):
    await house.chat("red")
    await house.chat("green")
    house.residency.pin(house.catalog.list_versions("green"))
    occupancy = house.parts.routers._engine[1]
    await occupancy.look()  # the stand-in has one slot
    seen = await look(house)
    assert seen.active == set()
    assert [seen.score_loaded(name) for name in ("red", "green@1", "blue")] == [1.0, 0.7, 0.0]
    assert {"adapter_name": "red", "level": "gpu", "pinned": "false", "rank": "8"} in (
        found := await loaded(house)
    )
    assert {"adapter_name": "green", "level": "cpu", "pinned": "true", "rank": "8"} in found
    assert len(found) == 6
    assert house.count("vllm:num_gpu_loaded_lora_adapters") == 1
    assert house.count("vllm:num_cpu_loaded_lora_adapters") == 2
    assert house.count("vllm:max_gpu_lora_adapters") == 1


async def test_as_many_versions_are_named_as_have_series_of_their_own(house):
    await house.chat("red")
    await house.chat("green")
    await house.chat("red")
    house.parts.routers._limit = 1
    assert {each["adapter_name"] for each in await loaded(house)} == {"red", "red@1", "red@stable"}


async def test_a_catalog_that_is_slow_or_gone_holds_no_scrape(house, monkeypatch):
    await house.chat("red")
    assert "red" in (await look(house)).loaded
    monkeypatch.setattr(routers, "_READ_SECONDS", 0.01)
    release, asked = threading.Event(), []

    def list_aliases(*names):
        asked.append(names)
        release.wait(10)
        return []

    monkeypatch.setattr(house.catalog, "list_aliases", list_aliases)
    assert "red" in (await look(house)).loaded
    assert "red" in (await look(house)).loaded
    assert len(asked) == 1  # one at a time
    release.set()


async def test_without_an_engine_there_is_no_series(house):
    house.parts.routers._engine = None
    text = (await house.client.get("/metrics")).text
    assert "lora_requests_info" not in text
    assert "lora_adapter_loaded" not in text

"""Sums have few places of their own among those of adapters, and wait apart from them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from decimal import Decimal

import pytest
from residency_stage import Stage, new_call

from adapters.sums import Part, add_up
from server.errors import SumRefused, Unavailable
from server.residency.catalog_sync import Removals


@pytest.fixture
def stage(tmp_path, metrics):
    stage = Stage(tmp_path, metrics, capacity=4)
    assert stage.residency.most_sums == 2
    yield stage
    stage.catalog.close()


def sum_of(*versions, weight="0.5"):
    return add_up(Part(each, Decimal(weight)) for each in versions)


async def test_sums_evict_sums_once_they_have_their_places(stage):
    red, green = stage.version("red"), stage.version("green")
    for version in (red, green):
        await stage.use(version)
    for number in range(1, 40):
        await stage.use(sum_of(red, weight=f"0.{number}"))
        assert {"red@1", "green@1"} <= stage.resident()
    assert stage.resident() == {"red@1", "green@1", "red@1*0.38", "red@1*0.39"}
    assert stage.engine.most_loaded == 4
    assert len(stage.residency._used_at) == 2  # nothing is kept of each sum


async def test_a_sum_evicts_an_adapter_only_for_its_own_places(stage):
    versions = [stage.version(name) for name in ("red", "green", "blue", "grey")]
    for version in versions:
        await stage.use(version)
    for number in range(1, 9):
        await stage.use(sum_of(versions[3], weight=f"0.{number}"))
    assert stage.resident() == {"blue@1", "grey@1", "grey@1*0.7", "grey@1*0.8"}
    await stage.use(versions[0])  # an adapter evicts the coldest of all
    await stage.use(versions[1])
    assert stage.resident() == {"red@1", "green@1", "grey@1*0.7", "grey@1*0.8"}


async def test_a_sum_without_a_place_waits_and_adapters_do_not_wait_behind_it(stage):
    stage.residency._wait_seconds = 0.5
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    async with AsyncExitStack() as leases:
        for weight in ("1.5", "2"):
            lease = stage.residency.lease(sum_of(red, weight=weight), new_call())
            await leases.enter_async_context(lease)
        waiting = asyncio.create_task(stage.use(sum_of(red, weight="3")))
        await asyncio.sleep(0)
        for version in (green, blue):
            await stage.use(version)
        assert not waiting.done()
        with pytest.raises(Unavailable) as refused:
            await waiting
    assert (refused.value.code, refused.value.retry_after) == ("adapters_busy", 1)
    assert "--max-sums" in str(refused.value)
    assert (await stage.use(sum_of(red, weight="3"))).engine_name.startswith("red@1*3#")


async def test_a_waiting_sum_takes_the_place_of_one_that_is_let_go(stage):
    red = stage.version("red")
    async with stage.residency.lease(sum_of(red, weight="2"), new_call()):
        async with stage.residency.lease(sum_of(red, weight="3"), new_call()):
            waiting = asyncio.create_task(stage.use(sum_of(red, weight="4")))
            await asyncio.sleep(0)
        await waiting
    assert stage.resident() == {"red@1*2", "red@1*4"}


async def test_sums_of_removed_parts_are_unloaded(stage):
    red, green = stage.version("red"), stage.version("green")
    for version in (sum_of(red, green), sum_of(green), green):
        await stage.use(version)
        stage.metrics._ledger.account(version.label)
    stage.catalog.drop_alias("red", "stable", actor="test")
    stage.catalog.remove("red", 1, actor="test")
    await Removals(stage.catalog, stage.residency, stage.metrics).look()
    await asyncio.gather(*stage.residency._retiring.values())
    assert stage.resident() == {"green@1*0.5", "green@1"}
    assert stage.metrics.versions() == ["green@1", "green@1*0.5"]


async def test_a_lost_sum_is_restored_with_the_others(stage):
    red = stage.version("red")
    for version in (red, sum_of(red)):
        await stage.use(version)
    held = stage.residency.forget()
    await stage.residency.restore(held, 1.0)
    assert stage.resident() == {"red@1", "red@1*0.5"}
    assert stage.residency.digests == {red.digest, sum_of(red).digest}


def test_ranks_that_are_too_much_together_are_refused_by_name(stage):
    red, green = stage.version("red", rank=16), stage.version("green", rank=2)
    stage.residency.check(sum_of(red))
    with pytest.raises(SumRefused, match=r"green@1 2, red@1 16\) are 18 together"):
        stage.residency.check(sum_of(red, green))

"""Which adapters the engine holds: the invariants, against a stand-in engine."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from residency_stage import new_call

from server.engine.interface import EngineGone, EngineRefusal
from server.errors import AdapterInUse, AdapterUnusable, Unavailable
from server.residency.served_files import Servable


async def test_concurrent_calls_for_a_cold_adapter_share_one_load(stage):
    version = stage.version("red")
    stage.engine.gate = asyncio.Event()
    calls = [new_call() for _ in range(20)]
    users = [asyncio.create_task(stage.use(version, call)) for call in calls]
    await asyncio.sleep(0)
    stage.engine.gate.set()
    adapters = await asyncio.gather(*users)

    assert stage.engine.asked == [1]
    assert len({adapter.engine_name for adapter in adapters}) == 1
    assert all(call.load_started is not None for call in calls)
    warm = new_call()
    await stage.use(version, warm)
    assert warm.load_started is None


async def test_the_least_recently_used_version_is_evicted(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    for version in (red, green, red, blue):
        await stage.use(version)

    assert stage.resident() == {"red@1", "blue@1"}
    assert stage.engine.most_loaded == 2
    labels = {"adapter": "green", "version": "1", "tier": "host"}
    registry = stage.metrics.registry
    assert registry.get_sample_value("lorry_adapter_evictions_total", labels) == 1
    assert registry.get_sample_value("lorry_adapter_resident", labels) is None


async def test_a_leased_adapter_is_never_evicted_and_waiting_ends_with_503(stage):
    stage.residency._wait_seconds = 0.1
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    async with AsyncExitStack() as leases:
        for version in (red, green):
            await leases.enter_async_context(stage.residency.lease(version, new_call()))
        with pytest.raises(Unavailable) as refused:
            await stage.use(blue)
    assert refused.value.code == "adapters_busy"
    assert refused.value.retry_after
    assert stage.engine.removed == []
    assert (await stage.use(blue)).engine_name.startswith("blue@1")


async def test_an_adapter_that_still_runs_in_the_engine_is_not_evicted(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    stage.engine.running.add((await stage.use(red)).engine_name)
    await stage.use(green)
    await stage.use(blue)  # evicts green, although red is colder

    assert stage.resident() == {"red@1", "blue@1"}


@pytest.mark.parametrize(
    ("failure", "raised"), [(EngineRefusal("no"), AdapterUnusable), (EngineGone("x"), Unavailable)]
)
async def test_a_failed_load_burns_its_id_and_is_removed(stage, failure, raised):
    version = stage.version("red")
    stage.engine.failures = [failure]
    with pytest.raises(raised):
        await stage.use(version)

    assert stage.engine.removed == [1]
    assert stage.resident() == set()
    labels = {"adapter": "red", "version": "1", "result": "error"}
    loads = stage.metrics.registry.get_sample_value("lorry_adapter_loads_total", labels)
    assert loads == 1
    await stage.use(version)
    assert stage.engine.asked == [1, 2]


async def test_every_call_that_waits_for_a_failed_load_gets_its_error(stage):
    version = stage.version("red")
    stage.engine.gate = asyncio.Event()
    stage.engine.failures = [EngineRefusal("no")]
    users = [asyncio.create_task(stage.use(version)) for _ in range(5)]
    await asyncio.sleep(0)
    stage.engine.gate.set()
    ends = await asyncio.gather(*users, return_exceptions=True)

    assert all(isinstance(end, AdapterUnusable) for end in ends)


async def test_a_caller_that_hangs_up_does_not_cancel_a_shared_load(stage):
    version = stage.version("red")
    stage.engine.gate = asyncio.Event()
    first = asyncio.create_task(stage.use(version))
    second = asyncio.create_task(stage.use(version))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0)
    stage.engine.gate.set()

    assert (await second).engine_name.startswith("red@1")
    assert first.cancelled()


async def test_an_adapter_that_does_not_fit_the_base_never_reaches_the_engine(stage):
    stage.unfit = True
    with pytest.raises(AdapterUnusable, match="too wide"):
        await stage.use(stage.version("red"))
    assert stage.engine.asked == []
    assert stage.resident() == set()


async def test_a_rank_above_the_limit_never_reaches_the_engine(stage):
    with pytest.raises(AdapterUnusable, match="--max-lora-rank"):
        await stage.use(stage.version("wide", rank=32))
    assert stage.engine.asked == []


async def test_each_load_of_one_version_has_a_new_id_and_a_new_engine_name(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    for version in (red, green, blue, red, green, blue):
        await stage.use(version)

    assert stage.engine.asked == [1, 2, 3, 4, 5, 6]
    assert len(set(stage.engine.names)) == 6


async def test_missing_files_are_a_503_and_the_load_can_be_retried(stage):
    version = stage.version("red")
    stage.lost = True
    with pytest.raises(Unavailable) as refused:
        await stage.use(version)
    assert (refused.value.code, refused.value.retry_after) == ("adapter_load_failed", 5)
    assert stage.engine.asked == []
    stage.lost = False
    assert (await stage.use(version)).engine_name.endswith(".2")


async def test_a_version_for_another_base_is_refused_unless_that_is_allowed(stage):
    other = stage.version("red", base_digest="sha256:" + "c" * 64)
    with pytest.raises(AdapterUnusable) as refused:
        await stage.use(other)
    assert refused.value.code == "base_mismatch"
    await stage.use(stage.version("green", base_digest=None))  # published without a base
    stage.residency._servable = Servable(max_rank=16)
    await stage.use(other)


async def test_a_slow_load_does_not_delay_others(stage):
    red, green = stage.version("red"), stage.version("green")
    stage.engine.gate = asyncio.Event()
    slow = asyncio.create_task(stage.use(red))
    while not stage.engine.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    stage.engine.gate, gate = None, stage.engine.gate
    await stage.use(green)
    assert not slow.done()
    gate.set()
    await slow
    assert stage.resident() == {"red@1", "green@1"}


async def test_a_load_that_takes_too_long_is_a_503_and_goes_on(stage):
    stage.residency._wait_seconds = 0.05
    version = stage.version("red")
    stage.engine.gate = asyncio.Event()
    with pytest.raises(Unavailable) as refused:
        await stage.use(version)
    assert refused.value.code == "adapter_loading"
    stage.engine.gate.set()
    await stage.use(version)
    assert stage.engine.asked == [1]


async def test_unload_waits_for_leases_and_frees_the_place(stage):
    red = stage.version("red")
    async with stage.residency.lease(red, new_call()):
        unloading = asyncio.create_task(stage.residency.unload(red))
        await asyncio.sleep(0.05)
        assert not unloading.done()
        assert stage.engine.removed == []
    assert await unloading is True
    assert (stage.engine.loaded, stage.engine.removed, stage.resident()) == ({}, [1], set())
    assert await stage.residency.unload(red) is False
    await stage.use(red)
    assert stage.engine.asked == [1, 2]


async def test_unload_gives_up_on_a_version_in_use_and_retire_does_not(stage):
    stage.residency._wait_seconds = 0.05
    red = stage.version("red")
    async with stage.residency.lease(red, new_call()):
        with pytest.raises(AdapterInUse):
            await stage.residency.unload(red)
        assert await stage.residency.retire(red) is False
    await asyncio.gather(*stage.residency._retiring.values())
    assert stage.engine.loaded == {}


async def test_a_removed_version_that_an_earlier_call_loads_leaves_after_that_call(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    async with AsyncExitStack() as leases:
        for version in (red, green):
            await leases.enter_async_context(stage.residency.lease(version, new_call()))
        waiting = asyncio.create_task(stage.use(blue))
        await asyncio.sleep(0)
        retiring = stage.residency.begin_to_retire(blue)
        assert stage.residency.begin_to_retire(blue) is retiring
        await asyncio.sleep(0.05)
        assert not retiring.done()
    assert (await waiting).engine_name.startswith("blue@1")
    await retiring
    assert "blue@1" not in stage.resident()
    assert not any(name.startswith("blue") for name in stage.engine.loaded.values())


async def test_a_place_is_free_only_once_the_engine_has_removed_its_adapter(stage, monkeypatch):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    slow, remove = asyncio.Event(), stage.engine.remove_adapter

    async def remove_slowly(integer_id, within):
        await slow.wait()
        await remove(integer_id, within)

    await stage.use(red)
    async with stage.residency.lease(green, new_call()):
        monkeypatch.setattr(stage.engine, "remove_adapter", remove_slowly)
        leaving = asyncio.create_task(stage.residency.unload(red))
        waiting = asyncio.create_task(stage.use(blue))
        await asyncio.sleep(0.05)
        assert len(stage.engine.asked) == 2
        slow.set()
        assert await leaving
        await waiting
    assert stage.engine.most_loaded == 2


async def test_random_traffic_keeps_every_invariant(stage):
    chance = random.Random(7)
    stage.residency._wait_seconds = 10
    versions = [stage.version(f"a{number}") for number in range(6)]

    async def user():
        for _ in range(30):
            version = chance.choice(versions)
            if chance.random() < 0.1:
                stage.engine.failures.append(EngineRefusal("no"))
            try:
                async with stage.residency.lease(version, new_call()) as adapter:
                    assert adapter.engine_name in stage.engine.loaded.values()
                    stage.engine.running.add(adapter.engine_name)
                    await asyncio.sleep(chance.random() / 500)
                    stage.engine.running.discard(adapter.engine_name)
            except AdapterUnusable:
                pass

    # With two users for two places no wait is endless; everything else can happen.
    await asyncio.gather(user(), user())
    assert stage.engine.most_loaded <= 2
    assert len(set(stage.engine.asked)) == len(stage.engine.asked)
    assert set(stage.engine.removed) | set(stage.engine.loaded) == set(stage.engine.asked)


async def test_the_evicted_version_leaves_the_engine_even_if_the_load_fails(stage):
    for name in ("red", "green"):
        await stage.use(stage.version(name))

    def fail(version):
        raise RuntimeError("a bug")

    stage.residency._loader._check = fail
    with pytest.raises(RuntimeError):
        await stage.use(stage.version("blue"))
    assert stage.resident() == {"green@1"}
    assert len(stage.engine.loaded) == 1

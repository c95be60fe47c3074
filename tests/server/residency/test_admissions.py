"""Waiting for a place in the engine: the order of turns, and callers that hang up meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from residency_stage import new_call


async def test_a_waiting_version_takes_a_place_that_becomes_free(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    async with AsyncExitStack() as leases:
        await leases.enter_async_context(stage.residency.lease(red, new_call()))
        async with stage.residency.lease(green, new_call()):
            waiting = asyncio.create_task(stage.use(blue))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        assert (await waiting).engine_name.startswith("blue@1")


async def test_calls_for_one_version_share_its_turn_in_the_queue(stage):
    red, green, blue, grey = (stage.version(name) for name in ("red", "green", "blue", "grey"))
    async with AsyncExitStack() as leases:
        await leases.enter_async_context(stage.residency.lease(red, new_call()))
        async with stage.residency.lease(green, new_call()):
            waiting = [asyncio.create_task(stage.use(each)) for each in (blue, grey, blue)]
            await asyncio.sleep(0.05)
        first, last = await asyncio.wait_for(asyncio.gather(waiting[0], waiting[2]), 2)
        assert first.engine_name == last.engine_name
    await waiting[1]


async def test_nothing_is_evicted_for_callers_that_hung_up_in_the_queue(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    async with AsyncExitStack() as leases:
        for version in (red, green):
            await leases.enter_async_context(stage.residency.lease(version, new_call()))
        waiting = [asyncio.create_task(stage.use(blue)) for _ in range(3)]
        await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
    await asyncio.sleep(0.05)
    assert stage.resident() == {"red@1", "green@1"}
    assert len(stage.engine.asked) == 2
    assert (await stage.use(blue)).engine_name.startswith("blue@1")  # it can wait again


async def test_the_turn_stays_for_the_others_when_one_caller_hangs_up(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    async with AsyncExitStack() as leases:
        for version in (red, green):
            await leases.enter_async_context(stage.residency.lease(version, new_call()))
        first, second = (asyncio.create_task(stage.use(blue)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
    assert (await second).engine_name.startswith("blue@1")


async def test_versions_get_places_in_the_order_of_their_requests(stage):
    red, green, *late = (stage.version(name) for name in ("red", "green", "a", "b", "c"))
    async with AsyncExitStack() as leases:
        for version in (red, green):
            await leases.enter_async_context(stage.residency.lease(version, new_call()))
        waiting = []
        for version in late:
            waiting.append(asyncio.create_task(stage.use(version)))
            await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert [name[:3] for name in stage.engine.names[2:]] == ["a@1", "b@1", "c@1"]

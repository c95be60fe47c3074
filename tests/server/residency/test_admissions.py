"""Those who wait for a place: whose turn it is, and what a caller who hangs up leaves behind."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from residency_stage import new_call


async def test_a_place_that_becomes_free_is_taken_by_the_one_that_waits(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    async with AsyncExitStack() as leases:
        await leases.enter_async_context(stage.residency.lease(red, new_call()))
        async with stage.residency.lease(green, new_call()):
            waiting = asyncio.create_task(stage.use(blue))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        assert (await waiting).engine_name.startswith("blue@1")


async def test_those_who_ask_for_one_adapter_wait_in_one_place_of_the_queue(stage):
    red, green, blue, grey = (stage.version(name) for name in ("red", "green", "blue", "grey"))
    async with AsyncExitStack() as leases:
        await leases.enter_async_context(stage.residency.lease(red, new_call()))
        async with stage.residency.lease(green, new_call()):
            waiting = [asyncio.create_task(stage.use(each)) for each in (blue, grey, blue)]
            await asyncio.sleep(0.05)
        first, last = await asyncio.wait_for(asyncio.gather(waiting[0], waiting[2]), 2)
        assert first.engine_name == last.engine_name
    await waiting[1]


async def test_for_callers_who_hung_up_in_the_queue_nobody_has_to_leave(stage):
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
    assert (await stage.use(blue)).engine_name.startswith("blue@1")  # which had given up


async def test_one_who_hangs_up_takes_no_turn_away_from_those_who_wait_with_it(stage):
    red, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    async with AsyncExitStack() as leases:
        for version in (red, green):
            await leases.enter_async_context(stage.residency.lease(version, new_call()))
        first, second = (asyncio.create_task(stage.use(blue)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
    assert (await second).engine_name.startswith("blue@1")


async def test_places_are_given_in_the_order_they_were_asked_for(stage):
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

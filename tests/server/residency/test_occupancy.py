"""The gauges of both tiers: host memory from the residency, slots polled from the engine."""

from __future__ import annotations

import asyncio

import pytest

from server.engine.interface import EngineGone
from server.residency import occupancy
from server.residency.occupancy import Occupancy

RED = {"adapter": "red", "version": "1"}


@pytest.fixture
def watched(house, monkeypatch) -> Occupancy:
    monkeypatch.setattr(occupancy, "_POLL_SECONDS", 0.001)
    return Occupancy(house.residency, house.engine, house.metrics, {"device": 1, "host": 2})


async def test_gauges_show_both_tiers_and_their_places(house, watched):
    await house.chat("red")
    await house.chat("green")
    await watched.look()
    assert house.count("lorry_adapter_places", tier="device") == 1
    assert house.count("lorry_adapter_places", tier="host") == 2
    assert house.count("lorry_adapter_resident", **RED, tier="host") == 1
    assert house.count("lorry_adapter_resident", **RED, tier="device") == 1
    green = {"adapter": "green", "version": "1"}
    assert house.count("lorry_adapter_resident", **green, tier="host") == 1
    assert house.count("lorry_adapter_resident", **green, tier="device") == 0

    await house.chat("blue")  # red is evicted from host memory, so it is in no slot either
    assert house.count("lorry_adapter_resident", **RED, tier="device") == 0


async def test_versions_displaced_from_slots_are_counted_by_their_labels(house, watched):
    await house.chat("red")
    house.engine.displaced = ["red@1#abc.1", "red@1#abc.1", "gone@7#abc.2"]
    await watched.look()
    assert house.count("lorry_adapter_evictions_total", **RED, tier="device") == 2
    other = {"adapter": "_other", "version": ""}
    assert house.count("lorry_adapter_evictions_total", **other, tier="device") == 1


async def test_the_engine_is_polled_only_while_calls_run_and_once_after(house, watched):
    asked = 0

    async def slot_changes(within):
        nonlocal asked
        asked += 1
        if asked == 1:
            raise EngineGone("it did not answer")  # polling goes on
        return {"device": [], "displaced": []}

    house.engine.slot_changes = slot_changes
    following = asyncio.create_task(watched.run())
    await asyncio.sleep(0.05)
    assert asked == 1  # pins may have been loaded before the first call
    await house.chat("red")
    await asyncio.sleep(0.05)
    idle = asked
    assert idle > 1  # although the call had ended before the next poll
    await asyncio.sleep(0.05)
    assert asked == idle
    following.cancel()


async def test_an_engine_that_reports_no_slots_is_not_polled_again(house, watched):
    async def slot_changes(within):
        return None

    house.engine.slot_changes = slot_changes
    await asyncio.wait_for(watched.run(), 5)

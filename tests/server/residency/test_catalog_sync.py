"""Pinned versions are loaded and never evicted; one place stays for the others."""

from __future__ import annotations

from server.residency.catalog_sync import Pins


async def test_a_pinned_version_is_loaded_and_never_evicted(stage):
    _, green, blue = (stage.version(name) for name in ("red", "green", "blue"))
    stage.catalog.pin("red", 1, actor="test")
    pins = Pins(stage.catalog, stage.residency)
    await pins.settle()
    assert stage.resident() == {"red@1"}
    for version in (green, blue, green, blue):
        await stage.use(version)
    assert stage.resident() == {"red@1", "blue@1"}
    assert stage.engine.asked[0] not in stage.engine.removed

    stage.catalog.unpin("red", 1, actor="test")
    await pins.settle()
    for version in (green, blue):
        await stage.use(version)
    assert stage.resident() == {"green@1", "blue@1"}


async def test_too_many_pins_still_leave_one_place_for_the_others(stage, caplog):
    names = ("red", "green", "blue")
    versions = [stage.version(name) for name in names]
    for name in names:
        stage.catalog.pin(name, 1, actor="test")
    pins = Pins(stage.catalog, stage.residency)
    await pins.settle()
    await pins.settle()
    assert len(stage.engine.loaded) == 1
    for version in versions:
        await stage.use(version)
    assert caplog.text.count("3 versions are pinned but only 1 can be") == 1


async def test_a_pinned_version_that_cannot_be_loaded_is_retried_after_a_pause(stage):
    stage.version("red")
    stage.catalog.pin("red", 1, actor="test")
    stage.lost = True
    pins = Pins(stage.catalog, stage.residency)
    for _ in range(3):
        await pins.settle()
    assert stage.engine.removed == [1]  # one try
    pins._retry_at.clear()
    stage.lost = False
    await pins.settle()
    assert stage.resident() == {"red@1"}

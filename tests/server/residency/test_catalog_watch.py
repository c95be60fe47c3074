"""A catalog that is replaced, lost or locked under a server: /readyz, metrics, calls, changes."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from disks import Forbidden, fill, read_only, small_disk
from standin_server import TOKEN, publish

from adapters.catalog import Catalog
from adapters.errors import CatalogReplaced, CatalogUnreadable
from server.lifecycle import Lifecycle
from server.residency import catalog_sync
from server.residency.catalog_sync import CatalogWatch, Pins

BEARER = {"authorization": f"Bearer {TOKEN}"}
NOTICED_SECONDS = 1.0


@pytest.fixture
def file(house) -> Path:
    return house.parts.settings.store / "catalog.db"


@pytest.fixture
def backup(file, tmp_path) -> Path:
    return Path(shutil.copy(file, tmp_path / "backup.db"))


@asynccontextmanager
async def watched(house):
    task = asyncio.create_task(house.parts.catalog_watch.run())
    yield
    task.cancel()


async def ready(house) -> tuple[int, str | None]:
    answer = await house.client.get("/readyz")
    return answer.status_code, answer.json().get("reason")


async def becomes(house, expected: tuple[int, str | None]) -> None:
    began = time.monotonic()
    while (found := await ready(house)) != expected:
        assert time.monotonic() - began < NOTICED_SECONDS, found
        await asyncio.sleep(0.02)


async def point(house, version: int):
    body = {"version": version}
    path = "/admin/adapters/red/aliases/stable"
    return await house.client.put(path, json=body, headers=BEARER)


async def test_a_deleted_catalog_is_noticed_and_its_return_too(house, file, backup, caplog):
    await house.chat("red")
    async with watched(house):
        await becomes(house, (200, None))
        file.unlink()
        await becomes(house, (503, "catalog_unreadable"))
        assert "no such file" in (await house.client.get("/readyz")).json()["stage"]
        assert house.count("lorry_catalog_up") == 0
        assert (await house.chat("red")).status_code == 200, "known names are still answered"
        assert (await house.chat()).status_code == 200
        assert (await house.chat("blue")).json()["error"]["code"] == "catalog_unreadable"
        refused = await point(house, 1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "catalog_unreadable")
        assert not file.exists()
        backup.rename(file)
        await becomes(house, (200, None))
    assert house.count("lorry_catalog_up") == 1
    assert (await point(house, 1)).status_code == 200
    lines = [each for each in caplog.messages if "catalog" in each and "list of" not in each]
    assert sum("no such file" in each and "still answered" in each for each in lines) == 1
    assert sum("can be used again" in each for each in lines) == 1


@pytest.mark.parametrize("way", ["move", "copy"])
async def test_a_restored_catalog_is_answered_from_within_a_second(house, file, backup, way):
    newer = publish(house.catalog, "red", content="newer")
    assert (await house.chat("red")).json()["model"] == newer.label == "red@2"
    async with watched(house):
        await becomes(house, (200, None))
        backup.rename(file) if way == "move" else shutil.copy(backup, file)
        assert (await house.chat("red")).json()["model"] == "red@1"
        assert (await house.chat("red@2")).status_code == 404
        await asyncio.sleep(0.6)
        await becomes(house, (200, None))
    assert (await point(house, 1)).status_code == 200
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT max(number) FROM versions").fetchone() == (1,)


async def test_another_stores_catalog_is_refused_until_the_right_one_is_back(
    house, file, backup, tmp_path
):
    await house.chat("red")
    with Catalog.open(tmp_path / "other") as other:
        publish(other, "red", content="other")
    async with watched(house):
        shutil.copy(tmp_path / "other" / "catalog.db", file)
        await becomes(house, (503, "catalog_replaced"))
        assert (await house.chat("red")).json()["model"] == "red@1"
        answer = await point(house, 1)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "catalog_replaced")
        file.write_bytes(b"nonsense" * 1000)
        await becomes(house, (503, "catalog_unreadable"))
        assert list(house.lifecycle.hindrances) == ["catalog_unreadable"]
        backup.rename(file)
        await becomes(house, (200, None))


async def test_a_change_to_a_file_that_is_gone_is_never_a_200(house, file, backup, monkeypatch):
    confirm = house.catalog._transactions._confirm

    def replace_first(newest):
        backup.rename(file)
        monkeypatch.undo()
        confirm(newest)

    publish(house.catalog, "red", content="newer", aliases=())
    monkeypatch.setattr(house.catalog._transactions, "_confirm", replace_first)
    answer = await point(house, 2)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "catalog_replaced")
    assert (await point(house, 2)).status_code == 404  # as the restored catalog says


async def test_a_catalog_that_stays_locked_is_noticed_and_known_names_answer_at_once(
    house, file, monkeypatch
):
    monkeypatch.setattr(catalog_sync, "_ANSWER_SECONDS", 0.2)
    await house.chat("red")
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    async with watched(house):
        await becomes(house, (503, "catalog_unreadable"))
        began = time.monotonic()
        assert (await house.chat("red")).status_code == 200
        assert time.monotonic() - began < 0.5
        holder.close()
        await becomes(house, (200, None))


class Scripted:
    """A catalog whose check raises what the test says."""

    def __init__(self, is_shared: bool) -> None:
        self.is_shared = is_shared
        self.error: Exception | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error


async def test_a_database_that_is_away_does_not_make_all_its_servers_unready():
    lifecycle, catalog = Lifecycle(), Scripted(is_shared=True)
    watch = CatalogWatch(catalog, lifecycle)
    catalog.error = CatalogUnreadable("refused", "start it")
    await watch.look()
    assert (watch.problem, lifecycle.hindrances) == (catalog.error, {})
    catalog.error = CatalogReplaced("another one", "bring back the right one")
    await watch.look()
    assert list(lifecycle.hindrances) == ["catalog_replaced"]
    catalog.error = None
    await watch.look()
    assert (watch.problem, lifecycle.hindrances) == (None, {})


async def test_an_error_that_nobody_thought_of_is_a_reason_too():
    lifecycle, catalog = Lifecycle(), Scripted(is_shared=False)
    watch = CatalogWatch(catalog, lifecycle)
    catalog.error = OSError(5, "Input/output error")
    await watch.look()
    assert "Input/output error" in lifecycle.hindrances["catalog_unreadable"]


async def test_pins_that_cannot_be_read_are_reported_once(stage, caplog, monkeypatch):
    def fail():
        raise CatalogUnreadable("it is gone", "bring it back")

    pins = Pins(stage.catalog, stage.residency)
    monkeypatch.setattr(stage.catalog, "pins", fail)
    for _ in range(3):
        await pins.look()
    assert caplog.text.count("pins can't be read") == 1


async def test_a_read_only_store_serves_and_refuses_changes_with_503(house, file):
    try:
        with read_only(file.parent):
            assert (await house.chat("green")).status_code == 200
            assert (await house.client.get("/v1/models")).status_code == 200
            assert (await house.client.get("/admin/adapters", headers=BEARER)).status_code == 200
            refused = [
                await house.client.delete("/admin/adapters/red/aliases/stable", headers=BEARER),
                await house.client.post("/admin/adapters/red/versions/1/pin", headers=BEARER),
                await house.client.post(
                    "/admin/adapters",
                    data={"name": "red"},
                    files=[("file", ("adapter_config.json", b"{}"))],
                    headers=BEARER,
                ),
            ]
            await house.parts.catalog_watch.look()
            assert await ready(house) == (200, None)
    except Forbidden as error:
        pytest.skip(str(error))
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_read_only")
        assert answer.headers["retry-after"]


async def test_a_full_store_serves_and_refuses_changes_with_507(house, file, tmp_path):
    try:
        with small_disk(tmp_path / "disk") as disk:
            shutil.copytree(file.parent, disk / "store")
            file.parent.rename(tmp_path / "away")
            file.parent.symlink_to(disk / "store")
            fill(disk)
            await house.parts.catalog_watch.look()
            assert await ready(house) == (200, None)
            assert (await house.chat("green")).status_code == 200
            refused = [
                await house.client.delete("/admin/adapters/red/aliases/stable", headers=BEARER),
                await house.client.post(
                    "/admin/adapters",
                    data={"name": "red"},
                    files=[("file", ("adapter_config.json", bytes(100_000)))],
                    headers=BEARER,
                ),
            ]
            assert (await house.chat("red")).status_code == 200
            house.catalog.close()
    except Forbidden as error:
        pytest.skip(str(error))
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "store_full")

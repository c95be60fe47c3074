"""`verify` and `gc`: what is found, what is removed, and above all what is not."""

import multiprocessing
import os
import shutil
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from publishing import publish

from adapters.catalog import Catalog
from adapters.errors import (
    StoreBusy,
    StoreUnwritable,
)
from adapters.store import Store
from adapters.store import store as store_module
from adapters.upkeep import Collected, audit, collect

NOW = timedelta(0)
LONG_AGO = time.time() - 10 * 3600


def gc(store: Path, **options) -> Collected:
    with Catalog.open(store, create=False) as catalog:
        return collect(Store(store), catalog, **options)


def statuses(store: Path) -> list[str]:
    with Catalog.open(store, create=False) as catalog:
        return [finding.status for finding in audit(Store(store), catalog)]


def files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if "catalog" not in path.name)


@pytest.fixture
def store(store_with_orders: Path) -> Path:
    """A store with orders@1 whose files are hours old."""
    return age(store_with_orders)


def age(store: Path) -> Path:
    for path in store.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return store


@pytest.fixture
def orphan(store, kit, tmp_path) -> str:
    digest = Store(store).add(kit.build(seed=9).write(tmp_path / "orphan"))
    age(store)
    return digest


def test_a_sound_store_has_nothing_to_collect(store) -> None:
    before = files(store)
    assert gc(store) == gc(store, min_age=NOW) == Collected((), (), 0, 0)
    assert files(store) == before


def test_orphans_and_leftovers_go_and_nothing_else(store, orphan) -> None:
    keep = [path for path in files(store) if orphan[7:] not in str(path)]
    folder, file = store / "tmp" / "cut-off", store / "tmp" / "a-file"
    folder.mkdir()
    (folder / "half").write_bytes(b"12345")
    file.write_bytes(b"123")
    age(store)
    foreign = store / "objects" / "sha256" / "00" / "lost+found"
    foreign.mkdir(parents=True)
    size = sum(path.stat().st_size for path in Store(store).path(orphan).iterdir()) + 8
    found = gc(store)
    assert found == Collected((orphan,), ("a-file", "cut-off"), size, 0)
    assert set(files(store)) - {foreign, foreign.parent} == set(keep)
    assert statuses(store) == ["ok"]
    assert gc(store) == Collected((), (), 0, 0)


def test_a_dry_run_finds_the_same_and_removes_nothing(store, orphan) -> None:
    before = files(store)
    told = gc(store, dry_run=True)
    assert files(store) == before
    assert told == gc(store)
    assert told.orphans == (orphan,)


def test_young_garbage_is_spared(store, kit, tmp_path) -> None:
    digest = Store(store).add(kit.build(seed=9).write(tmp_path / "a"))
    (store / "tmp" / "young").mkdir()
    assert gc(store) == Collected((), (), 0, 2)
    assert gc(store, min_age=NOW).orphans == (digest,)


def test_an_old_orphan_that_is_added_again_is_young(store, orphan, kit, tmp_path) -> None:
    assert Store(store).add(kit.build(seed=9).write(tmp_path / "again")) == orphan
    assert gc(store) == Collected((), (), 0, 1)


def test_the_clock_of_this_machine_does_not_matter(store, orphan, monkeypatch) -> None:
    monkeypatch.setattr(time, "time", lambda: LONG_AGO)
    assert gc(store).orphans == (orphan,)


def test_a_removed_version_leaves_its_files_for_later(store, kit, base_folder, tmp_path) -> None:
    with Catalog.open(store) as catalog:
        digest = catalog.list_versions()[0].digest
        catalog.drop_alias("orders", "stable", actor="ann")
        catalog.remove("orders", 1, actor="ann")
        assert statuses(store) == ["orphan"]
        assert gc(store) == Collected((), (), 0, 1), "a request may still be about to load it"
        Store(store).verify(digest)
        assert gc(store, min_age=NOW).orphans == (digest,)
    again = kit.build(seed=1).write(tmp_path / "again")
    version = publish(again, name="orders", store=store, base=base_folder)
    assert (version.label, version.digest) == ("orders@2", digest)
    assert statuses(store) == ["ok"]


def test_an_object_that_another_name_needs_stays(store, kit, base_folder, tmp_path) -> None:
    same = kit.build(seed=1).write(tmp_path / "same")
    publish(same, name="copies", store=store, base=base_folder)
    with Catalog.open(store) as catalog:
        catalog.drop_alias("orders", "stable", actor="ann")
        catalog.remove("orders", 1, actor="ann")
    assert gc(store, min_age=NOW) == Collected((), (), 0, 0)
    assert statuses(store) == ["ok"]


def test_nothing_goes_while_a_publisher_is_at_work(
    store, orphan, kit, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(store_module, "ALONE_SECONDS", 0.1)
    objects = Store(store)
    with objects.stage(kit.build(seed=5).write(tmp_path / "a")) as staged:
        digest = objects.commit(staged)
        with pytest.raises(StoreBusy, match="try again when it is done"):
            gc(store, min_age=NOW)
    objects.verify(digest)
    objects.verify(orphan)


def test_a_publisher_waits_until_the_store_is_clean(store, kit, base_folder, tmp_path) -> None:
    folder = kit.build(seed=5).write(tmp_path / "a")
    publisher = threading.Thread(
        target=publish, args=(folder,), kwargs={"name": "new", "store": store, "base": base_folder}
    )
    with Store(store).alone():
        publisher.start()
        time.sleep(0.1)
        assert list((store / "tmp").iterdir()) == []
    publisher.join(30)
    with Catalog.open(store) as catalog:
        assert [version.label for version in catalog.list_versions("new")] == ["new@1"]


def test_waiting_for_the_store_ends(store) -> None:
    with (
        Store(store).alone(),
        pytest.raises(StoreBusy),
        store_module.hold(store / "lock", alone=False, within=0.05),
    ):
        pass


def test_a_lock_that_cannot_be_taken_is_a_clear_error(tmp_path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreUnwritable, match="cannot be locked"), Store(tmp_path).alone():
        pass
    assert not (tmp_path / "elsewhere").exists()


def publish_again_and_again(store: Path, folders: list[Path], base: Path) -> None:
    for folder in folders:
        gone = publish(folder, name=f"x{folder.name}", store=store, base=base, aliases=())
        with Catalog.open(store) as catalog:
            catalog.remove(gone.name, 1, actor="ann")
        publish(folder, name=folder.name, store=store, base=base)


def test_collecting_all_the_time_never_harms_publishers(store, kit, base_folder, tmp_path) -> None:
    """Without a minimum age only the lock protects objects, each of which is an orphan at first.

    Processes, because the lock acts between them.
    """
    shares = [
        [kit.build(seed=100 + seed).write(tmp_path / f"{n}-{seed}") for seed in range(n, n + 12)]
        for n in (0, 6)
    ]
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=publish_again_and_again, args=(store, share, base_folder))
        for share in shares
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        gc(store, min_age=NOW)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    gc(store, min_age=NOW)
    assert set(statuses(store)) == {"ok"}
    assert list((store / "tmp").iterdir()) == []
    with Catalog.open(store) as catalog:
        assert len(catalog.list_versions()) == 1 + 24


@pytest.fixture
def three(kit, base_folder, tmp_path) -> Path:
    for seed, name in ((1, "a"), (2, "b"), (1, "c")):
        folder = kit.build(seed=seed).write(tmp_path / name)
        publish(folder, name=name, store=tmp_path / "store", base=base_folder)
    return tmp_path / "store"


def findings(store: Path) -> list[tuple[str, tuple[str, ...]]]:
    with Catalog.open(store, create=False) as catalog:
        found = audit(Store(store), catalog)
    return sorted((finding.status, finding.labels) for finding in found)


def objects(store: Path) -> dict[tuple[str, ...], Path]:
    with Catalog.open(store, create=False) as catalog:
        found = audit(Store(store), catalog)
    return {finding.labels: Store(store).path(finding.digest) for finding in found}


def test_a_sound_store_has_one_finding_for_each_object(three) -> None:
    assert findings(three) == [("ok", ("a@1", "c@1")), ("ok", ("b@1",))]


def test_a_lost_object_is_missing_for_all_that_need_it(three) -> None:
    shutil.rmtree(objects(three)["a@1", "c@1"])
    assert findings(three) == [("missing", ("a@1", "c@1")), ("ok", ("b@1",))]


def test_changed_bytes_are_damage(three) -> None:
    path = objects(three)[("b@1",)] / "adapter_config.json"
    path.chmod(0o644)
    path.write_text("{}")
    assert findings(three) == [("damaged", ("b@1",)), ("ok", ("a@1", "c@1"))]


def test_an_object_without_a_version_is_a_harmless_orphan(three, kit, tmp_path) -> None:
    Store(three).add(kit.build(seed=9).write(tmp_path / "x"))
    assert findings(three)[-1] == ("orphan", ())

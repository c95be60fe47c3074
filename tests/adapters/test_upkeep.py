"""What `gc` takes from a store, and above all what it does not."""

import errno
import multiprocessing
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from adapters.catalog import Catalog, location
from adapters.errors import (
    CatalogUnreadable,
    SchemaMismatch,
    StoreBusy,
    StoreUnreadable,
    StoreUnwritable,
)
from adapters.publish import publish
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
    """A store with orders@1, and with nothing that is younger than hours."""
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


def test_a_dry_run_tells_the_same_and_removes_nothing(store, orphan) -> None:
    before = files(store)
    told = gc(store, dry_run=True)
    assert files(store) == before
    assert told == gc(store)
    assert told.orphans == (orphan,)


def test_what_is_young_is_spared(store, kit, tmp_path) -> None:
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
        with pytest.raises(StoreBusy, match="try again when they are done"):
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


def test_a_lock_that_cannot_be_is_a_clear_error(tmp_path) -> None:
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
    """Without any age floor: the lock alone must do. Every object is an orphan in between."""
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


def test_a_store_whose_versions_are_elsewhere_is_not_taken_for_an_empty_one(
    kit, base_folder, tmp_path
) -> None:
    store, url = tmp_path / "store", f"sqlite:///{tmp_path / 'shared.db'}"
    folder = kit.build().write(tmp_path / "a")
    publish(folder, name="a", store=store, base=base_folder, catalog_url=url)
    for create in (True, False):
        with pytest.raises(StoreUnreadable, match="LORRY_CATALOG"):
            Catalog.open(store, create=create)
    with Catalog.open(store, url, create=False) as catalog:
        assert [version.label for version in catalog.list_versions()] == ["a@1"]


def test_an_address_that_could_not_be_opened_changes_nothing(store, kit, tmp_path) -> None:
    for wrong in ("sqlite:////nowhere/x.db", "postgresql://u:p@127.0.0.1:1/typo", "sqlite://"):
        with pytest.raises(CatalogUnreadable):
            Catalog.open(store, wrong)
    assert statuses(store) == ["ok"]


def test_what_only_another_catalog_names_is_never_collected(
    store, kit, base_folder, tmp_path
) -> None:
    """The store's own one has a version, and so have two others."""
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("east", "west")]
    for number, url in enumerate(urls):
        folder = kit.build(seed=20 + number).write(tmp_path / f"a{number}")
        publish(folder, name="a", store=store, base=base_folder, catalog_url=url)
    before = sorted(Store(store).digests())
    assert len(before) == 3
    for url in urls:
        with (
            Catalog.open(store, url, create=False) as catalog,
            pytest.raises(StoreUnreadable, match=r"may be in other catalogs .*nothing was removed"),
        ):
            collect(Store(store), catalog, min_age=NOW)
    assert sorted(Store(store).digests()) == before
    # The operator knows that the others are not needed.
    (store / "catalog.db").unlink()
    (store / "catalog-elsewhere").write_text(f"{urls[1]}\n")
    with Catalog.open(store, urls[1], create=False) as catalog:
        assert len(collect(Store(store), catalog, min_age=NOW).orphans) == 2
        assert [version.digest for version in catalog.list_versions()] == [*Store(store).digests()]


def test_a_stores_own_catalog_may_be_called_by_its_address(store) -> None:
    with Catalog.open(store, f"sqlite:///{store / 'catalog.db'}") as catalog:
        assert collect(Store(store), catalog, min_age=NOW) == Collected((), (), 0, 0)
    assert statuses(store) == ["ok"]


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_store_that_lost_its_catalog_is_judged_and_nothing_of_it_is_taken(
    store, kit, base_folder, tmp_path, is_empty
) -> None:
    """It looks like one whose first publisher was killed."""
    for path in store.glob("catalog.db*"):
        path.unlink()
    if is_empty:
        (store / "catalog.db").touch()
    with pytest.raises((StoreUnreadable, SchemaMismatch)):
        gc(store, min_age=NOW)
    with Catalog.open(store, create=False, for_objects=True) as catalog:
        assert [finding.status for finding in audit(Store(store), catalog)] == ["orphan"]
        with pytest.raises(StoreUnreadable, match=r"never had a version.*nothing was removed"):
            collect(Store(store), catalog, min_age=NOW)
    # With the first version it is known what is needed.
    publish(kit.build(seed=5).write(tmp_path / "a"), name="a", store=store, base=base_folder)
    assert len(gc(store, min_age=NOW).orphans) == 1


def test_a_catalog_that_the_store_does_not_know_collects_nothing(
    store, kit, base_folder, tmp_path
) -> None:
    other, url = tmp_path / "other", f"sqlite:///{tmp_path / 'other.db'}"
    folder = kit.build(seed=5).write(tmp_path / "a")
    publish(folder, name="a", store=other, base=base_folder, catalog_url=url)
    for path in store.glob("catalog.db*"):
        path.unlink()
    with Catalog.open(store, url, create=False) as catalog:
        with pytest.raises(StoreUnreadable, match="does not know the catalog"):
            collect(Store(store), catalog, min_age=NOW)
        # As an older program left it, which did not say which catalogs there were.
        (store / "catalog-elsewhere").touch()
        with pytest.raises(StoreUnreadable, match="does not know the catalog"):
            collect(Store(store), catalog, min_age=NOW)
        publish(folder, name="a", store=store, base=base_folder, catalog_url=url)
        with pytest.raises(StoreUnreadable, match="others, of a Lorry that did not note them"):
            collect(Store(store), catalog, min_age=NOW)
    assert len([*Store(store).digests()]) == 2


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("postgresql://ann:x@db/lorry", "postgresql+psycopg://bob:y@db:5432/lorry", True),
        ("postgresql:///lorry?host=/run/a", "postgresql:///lorry?host=/run/b", False),
        ("postgresql://db/lorry?port=5433", "postgresql://db/lorry", False),
        ("postgresql://db/east", "postgresql://db/west", False),
    ],
)
def test_a_database_is_known_by_where_it_is_and_not_by_who_enters(first, second, is_same) -> None:
    one, other = (location.address(make_url(url)) for url in (first, second))
    assert (one == other) is is_same
    assert "ann" not in one


def test_a_catalog_that_can_not_be_noted_is_not_published_to(store, tmp_path, monkeypatch) -> None:
    """Else nothing would say that the store's own catalog is not the only one."""
    failure = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise failure

    monkeypatch.setattr(location, "_add", fail)
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with pytest.raises(StoreUnwritable, match="No space left"):
        Catalog.open(store, url)
    failure = OSError(errno.EROFS, "Read-only file system")  # of which nothing is collected
    Catalog.open(store, url).close()


def test_two_servers_that_note_their_catalogs_at_once_are_both_known(
    store, tmp_path, monkeypatch
) -> None:
    link, quicker = os.link, f"sqlite:///{tmp_path / 'quicker.db'}"

    def link_late(*names):
        monkeypatch.setattr(os, "link", link)
        Catalog.open(store, quicker).close()
        link(*names)

    monkeypatch.setattr(os, "link", link_late)
    slower = f"sqlite:///{tmp_path / 'slower.db'}"
    Catalog.open(store, slower).close()
    assert (store / "catalog-elsewhere").read_text().splitlines() == [quicker, slower]
    assert list((store / "tmp").iterdir()) == []

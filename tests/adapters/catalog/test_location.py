"""A store belongs to one catalog: no other writes beside it or collects its garbage."""

import errno
import os
from datetime import timedelta
from pathlib import Path

import pytest
from publishing import publish
from sqlalchemy.engine import make_url

from adapters.catalog import Catalog, location
from adapters.errors import CatalogUnreadable, SchemaMismatch, StoreUnreadable, StoreUnwritable
from adapters.store import Store
from adapters.upkeep import Collected, audit, collect

NOW = timedelta(0)


@pytest.fixture
def store(store_with_orders: Path) -> Path:
    return store_with_orders


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shared.db'}"


def statuses(store: Path) -> list[str]:
    with Catalog.open(store, create=False) as catalog:
        return [finding.status for finding in audit(Store(store), catalog)]


def lose_catalog(store: Path) -> None:
    for path in store.glob("catalog.db*"):
        path.unlink()


@pytest.mark.parametrize("create", [True, False])
def test_a_store_whose_versions_are_elsewhere_is_not_taken_for_an_empty_one(
    kit, base_folder, tmp_path, url, create
) -> None:
    store, folder = tmp_path / "other", kit.build().write(tmp_path / "a")
    publish(folder, name="a", store=store, base=base_folder, catalog_url=url)
    with pytest.raises(StoreUnreadable, match=r"shared\.db.*LORRY_CATALOG"):
        Catalog.open(store, create=create)
    assert not (store / "catalog.db").exists()
    with Catalog.open(store, url, create=False) as catalog:
        assert [version.label for version in catalog.list_versions()] == ["a@1"]


def test_an_address_that_could_not_be_opened_changes_nothing(store) -> None:
    for wrong in ("sqlite:////nowhere/x.db", "postgresql://u:p@127.0.0.1:1/typo", "sqlite://"):
        with pytest.raises(CatalogUnreadable):
            Catalog.open(store, wrong)
    assert statuses(store) == ["ok"]


def test_another_catalog_neither_writes_beside_a_store_nor_collects_from_it(
    store, kit, base_folder, tmp_path, url
) -> None:
    folder = kit.build(seed=5).write(tmp_path / "a")
    publish(folder, name="a", store=tmp_path / "other", base=base_folder, catalog_url=url)
    with pytest.raises(StoreUnreadable, match=r"are in the catalog .*catalog\.db"):
        publish(folder, name="a", store=store, base=base_folder, catalog_url=url)
    with (
        Catalog.open(store, url, create=False) as catalog,
        pytest.raises(StoreUnreadable, match=r"are in the catalog .*catalog\.db"),
    ):
        collect(Store(store), catalog, min_age=NOW)
    assert statuses(store) == ["ok"]


def test_a_catalog_is_known_by_its_id_wherever_it_is(store, tmp_path, url) -> None:
    with Catalog.open(store, f"sqlite:///{store / 'catalog.db'}") as catalog:
        assert collect(Store(store), catalog, min_age=NOW) == Collected((), (), 0, 0)
    (store / "catalog.db").rename(tmp_path / "shared.db")
    with Catalog.open(store, url) as catalog:
        assert collect(Store(store), catalog, min_age=NOW) == Collected((), (), 0, 0)
        assert [version.label for version in catalog.list_versions()] == ["orders@1"]


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_store_that_lost_its_catalog_begins_no_other_by_itself(store, is_empty) -> None:
    lose_catalog(store)
    if is_empty:
        (store / "catalog.db").touch()
    for create in (False, True):
        with pytest.raises((StoreUnreadable, SchemaMismatch)):
            Catalog.open(store, create=create)
    assert len([*Store(store).digests()]) == 1


def test_a_new_catalog_collects_nothing_before_its_first_version(
    store, kit, base_folder, tmp_path
) -> None:
    lose_catalog(store)
    (store / "catalog-id").unlink()
    with Catalog.open(store) as catalog:
        assert [finding.status for finding in audit(Store(store), catalog)] == ["orphan"]
        with pytest.raises(StoreUnreadable, match=r"never had a version.*nothing was removed"):
            collect(Store(store), catalog, min_age=NOW)
        folder = kit.build(seed=5).write(tmp_path / "a")
        publish(folder, name="a", store=store, base=base_folder)
        assert len(collect(Store(store), catalog, min_age=NOW).orphans) == 1


def test_nothing_is_collected_from_a_store_that_does_not_know_the_catalog(store) -> None:
    (store / "catalog-id").unlink()
    with (
        Catalog.open(store, create=False) as catalog,
        pytest.raises(StoreUnreadable, match="does not know the catalog"),
    ):
        collect(Store(store), catalog, min_age=NOW)


def test_an_address_is_noted_without_its_credentials() -> None:
    url = make_url("postgresql+psycopg://ann:secret@db:5433/lorry?password=secret")
    assert location.address(url) == "postgresql+psycopg://db:5433/lorry"


def test_nothing_is_published_to_a_catalog_that_cannot_be_noted(tmp_path, url, monkeypatch) -> None:
    failure = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise failure

    monkeypatch.setattr(location, "_note", fail)
    with pytest.raises(StoreUnwritable, match="No space left"):
        Catalog.open(tmp_path / "other", url)
    failure = OSError(errno.EROFS, "Read-only file system")  # from which nothing is collected
    Catalog.open(tmp_path / "other", url).close()


def test_a_file_system_without_hard_links_will_do(store, monkeypatch) -> None:
    def link(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    (store / "catalog-id").unlink()
    monkeypatch.setattr(os, "link", link)
    with Catalog.open(store) as catalog:
        assert collect(Store(store), catalog, min_age=NOW) == Collected((), (), 0, 0)


def test_of_two_catalogs_that_are_noted_at_once_the_first_stays(tmp_path, url, monkeypatch) -> None:
    store, link, quicker = tmp_path / "other", os.link, f"sqlite:///{tmp_path / 'quicker.db'}"

    def link_late(*names):
        monkeypatch.setattr(os, "link", link)
        Catalog.open(store, quicker).close()
        link(*names)

    monkeypatch.setattr(os, "link", link_late)
    with pytest.raises(StoreUnreadable, match=r"quicker\.db"):
        Catalog.open(store, url)
    assert (store / "catalog-id").read_text().endswith(f" {quicker}\n")
    assert list((store / "tmp").iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
def test_an_id_that_can_not_be_read_is_an_error_of_the_store(store, create) -> None:
    (store / "catalog-id").unlink()
    (store / "catalog-id").mkdir()
    with pytest.raises(StoreUnreadable, match=r"catalog-id.*rights"):
        Catalog.open(store, create=create)


def test_the_id_is_readable_by_others_whatever_the_umask(kit, base_folder, tmp_path) -> None:
    before = os.umask(0o077)
    try:
        folder = kit.build().write(tmp_path / "a")
        publish(folder, name="a", store=tmp_path / "other", base=base_folder)
    finally:
        os.umask(before)
    assert (tmp_path / "other" / "catalog-id").stat().st_mode & 0o777 == 0o644


def test_a_stray_database_does_not_hide_where_the_versions_are(
    kit, base_folder, tmp_path, url
) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    folder = kit.build().write(tmp_path / "a")
    publish(folder, name="a", store=shared, base=base_folder, catalog_url=url)
    Catalog.open(own).close()
    (own / "catalog.db").rename(shared / "catalog.db")
    with pytest.raises(StoreUnreadable, match=r"shared\.db.*LORRY_CATALOG"):
        Catalog.open(shared, create=False)

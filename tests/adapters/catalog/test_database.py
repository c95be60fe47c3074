"""How a catalog's database is opened, and the errors of one that cannot be."""

import sqlite3
import time

import pytest

from adapters.catalog import AdapterVersion, Catalog, database
from adapters.errors import CatalogUnreadable, SchemaMismatch, StoreUnreadable, StoreUnwritable
from adapters.names import parse_reference


@pytest.fixture
def catalog_url() -> None:
    """All catalogs of this file are in SQLite."""


def resolve(catalog: Catalog, text: str) -> AdapterVersion:
    return catalog.resolve(parse_reference(text))


def test_readers_do_not_wait_for_a_writer(enter, catalog, tmp_path) -> None:
    enter(catalog)
    writer = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM targets")
    started = time.perf_counter()
    assert resolve(catalog, "orders@1").version == 1
    assert resolve(catalog, "orders").version == 1
    assert time.perf_counter() - started < 1
    writer.close()


def test_a_database_held_locked_is_a_clear_error(enter, catalog, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Catalog.open(tmp_path) as other, pytest.raises(CatalogUnreadable, match="locked"):
        enter(other)
    holder.close()


def test_a_published_version_survives_a_power_cut(tmp_path, monkeypatch) -> None:
    monkeypatch.undo()
    engine = database.open_engine(database.sqlite_url(tmp_path / "x.db"), create=True)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3  # EXTRA
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
    engine.dispose()


def test_a_store_that_is_not_there_is_not_made_by_reading(tmp_path) -> None:
    with pytest.raises(StoreUnreadable, match="there is no adapter store"):
        Catalog.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_a_store_below_a_file_is_a_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnwritable):
        Catalog.open(tmp_path / "file" / "store")
    with pytest.raises(StoreUnreadable):
        Catalog.open(tmp_path / "file" / "store", create=False)


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database_is_a_clear_error(tmp_path, create) -> None:
    (tmp_path / "catalog.db").write_bytes(b"not a database " * 100)
    with pytest.raises(CatalogUnreadable, match="not a database"):
        Catalog.open(tmp_path, create=create)


def test_a_database_of_something_else_is_a_clear_error(tmp_path) -> None:
    sqlite3.connect(tmp_path / "catalog.db").close()
    with pytest.raises(SchemaMismatch, match="is not a catalog"):
        Catalog.open(tmp_path, create=False)


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/name", "postgresql+nosuch://host/x"])
def test_an_address_that_is_no_database_is_a_clear_error(tmp_path, url) -> None:
    with pytest.raises(CatalogUnreadable):
        Catalog.open(tmp_path, url=url)


def test_a_url_replaces_the_file_in_the_store(enter, tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    with Catalog.open(tmp_path / "store", url=url) as catalog:
        enter(catalog)
    assert not (tmp_path / "store" / "catalog.db").exists()
    with Catalog.open(tmp_path / "store", url=url, create=False) as catalog:
        assert resolve(catalog, "orders").version == 1

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from adapters import catalog as catalog_module
from adapters import schema
from adapters.catalog import AdapterVersion, Catalog
from adapters.checkpoint import Checkpoint
from adapters.errors import (
    AdapterNotFound,
    AmbiguousDigest,
    BadName,
    CatalogUnreadable,
    SchemaMismatch,
    StoreUnreadable,
    StoreUnwritable,
)
from adapters.freshness import EventFreshness
from adapters.names import parse_reference

FACTS = Checkpoint(8, 16.0, ("q_proj",), "somewhere", 1234, 4)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path) as catalog:
        yield catalog


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def publish(catalog: Catalog, name: str = "orders", number: int = 1, **options) -> AdapterVersion:
    defaults: dict[str, Any] = {"checkpoint": FACTS, "base": "tiny", "actor": "ann"}
    return catalog.publish(name=name, digest=digest(number), **(defaults | options))


def resolve(catalog: Catalog, text: str) -> AdapterVersion:
    return catalog.resolve(parse_reference(text))


def test_a_published_version_has_all_its_facts(catalog) -> None:
    version = publish(catalog, provenance={"recipe": "r.yaml"})
    assert (version.name, version.version, version.label) == ("orders", 1, "orders@1")
    assert (version.digest, version.rank, version.alpha) == (digest(1), 8, 16.0)
    assert (version.base, version.size_bytes) == ("tiny", 1234)
    assert version.aliases == ("stable",)
    assert version.provenance == {"recipe": "r.yaml"}
    assert version.created_at.tzinfo == UTC
    assert abs(version.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert resolve(catalog, "orders") == version
    assert catalog.list_versions() == [version]
    assert hash(version) == hash(resolve(catalog, "orders@1"))


def test_versions_count_from_one_for_each_name(catalog) -> None:
    assert [publish(catalog, "a", number).version for number in (1, 2, 3)] == [1, 2, 3]
    assert publish(catalog, "b", 1).version == 1
    assert [version.label for version in catalog.list_versions()] == ["a@1", "a@2", "a@3", "b@1"]
    assert [version.label for version in catalog.list_versions("b")] == ["b@1"]
    assert catalog.list_versions("c") == []


def test_stable_follows_the_newest(catalog) -> None:
    publish(catalog, number=1)
    publish(catalog, number=2)
    assert resolve(catalog, "orders").version == 2
    assert resolve(catalog, "orders@stable").version == 2
    assert resolve(catalog, "orders@1").aliases == ()


def test_other_aliases_leave_stable_where_it_was(catalog) -> None:
    publish(catalog, number=1)
    publish(catalog, number=2, aliases=("canary", "beta", "canary"))
    assert resolve(catalog, "orders").version == 1
    assert resolve(catalog, "orders@canary").aliases == ("beta", "canary")


def test_the_same_bytes_are_not_a_new_version_but_the_aliases_move(catalog) -> None:
    first = publish(catalog, number=1)
    publish(catalog, number=2)
    again = publish(catalog, number=1, provenance={"other": True})
    assert (again.version, again.created_at) == (1, first.created_at)
    assert again.provenance is None
    assert len(catalog.list_versions()) == 2
    assert resolve(catalog, "orders").version == 1


def test_a_digest_prefix_names_a_version(catalog) -> None:
    publish(catalog, number=0xABC)
    publish(catalog, number=0xABD)
    publish(catalog, "others", number=0xABC)
    assert resolve(catalog, f"orders@sha256:{0xABC:064x}").label == "orders@1"
    with pytest.raises(AmbiguousDigest, match="orders@1, orders@2"):
        resolve(catalog, "orders@sha256:000000")


@pytest.mark.parametrize(
    "text", ["nobody", "orders@2", "orders@canary", "orders@sha256:ffffff", "ORDERS"]
)
def test_what_is_not_there_is_not_found(catalog, text) -> None:
    publish(catalog)
    with pytest.raises(AdapterNotFound):
        resolve(catalog, text)


def test_a_missing_alias_says_what_there_is(catalog) -> None:
    publish(catalog, aliases=("canary",))
    with pytest.raises(AdapterNotFound, match=r"no 'stable'; ask for one of canary, 1"):
        resolve(catalog, "orders")


def test_every_change_is_an_event(catalog) -> None:
    publish(catalog, number=1, actor="ann")
    publish(catalog, number=2, actor="ben")
    publish(catalog, number=2, actor="eve")
    events = [(e.actor, e.action, e.name, e.detail) for e in catalog.list_events()]
    assert events == [
        ("ann", "published", "orders", {"version": 1, "digest": digest(1)}),
        ("ann", "alias_moved", "orders", {"alias": "stable", "from": None, "to": 1}),
        ("ben", "published", "orders", {"version": 2, "digest": digest(2)}),
        ("ben", "alias_moved", "orders", {"alias": "stable", "from": 1, "to": 2}),
    ]


def test_a_bad_alias_publishes_nothing(catalog) -> None:
    with pytest.raises(BadName):
        publish(catalog, aliases=("stable", "7"))
    assert catalog.list_versions() == []


def test_a_change_is_seen_by_the_next_call_of_everyone(catalog, tmp_path) -> None:
    publish(catalog, number=1)
    with Catalog.open(tmp_path) as other:
        for number in range(2, 8):
            assert resolve(other, "orders").version == number - 1
            publish(catalog, number=number)
            assert resolve(other, "orders").version == number
            assert resolve(catalog, "orders").version == number


def test_a_change_by_another_process_is_seen_by_the_next_call(catalog, tmp_path) -> None:
    publish(catalog, number=1)
    assert resolve(catalog, "orders").version == 1
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "c.execute(\"update aliases set alias = 'old'\"); c.commit()"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "catalog.db"], check=True)
    with pytest.raises(AdapterNotFound):
        resolve(catalog, "orders")


def test_a_late_answer_never_lands_in_a_newer_memory(catalog, monkeypatch) -> None:
    """A lookup that read before a change, and is stored after it, must not be remembered."""
    publish(catalog, number=1)
    find = catalog_module.find_version

    def find_slowly(connection, reference):
        monkeypatch.setattr(catalog_module, "find_version", find)
        found = find(connection, reference)
        publish(catalog, number=2)
        assert resolve(catalog, "orders").version == 2
        return found

    monkeypatch.setattr(catalog_module, "find_version", find_slowly)
    assert resolve(catalog, "orders").version == 1
    assert resolve(catalog, "orders").version == 2


def test_strange_names_do_not_fill_the_memory(catalog, monkeypatch) -> None:
    monkeypatch.setattr(catalog_module, "REMEMBERED", 3)
    publish(catalog)
    for number in range(50):
        with pytest.raises(AdapterNotFound):
            resolve(catalog, f"unknown{number}")
    for length in range(6, 30):
        resolve(catalog, "orders@sha256:" + "0" * length)
    assert len(catalog._known) == 3


def test_resolving_a_known_name_is_fast_enough_for_an_event_loop(catalog) -> None:
    for number in range(10):
        publish(catalog, f"adapter-{number}", number)
    references = 10 * [parse_reference(f"adapter-{number}") for number in range(10)]
    for reference in references:
        catalog.resolve(reference)
    best = min(time_all(catalog, references) for _ in range(5))
    assert best / len(references) < 200e-6


def time_all(catalog: Catalog, references: list) -> float:
    started = time.perf_counter()
    for reference in references:
        catalog.resolve(reference)
    return time.perf_counter() - started


def test_threads_may_resolve_while_another_publishes(catalog) -> None:
    publish(catalog, number=1)
    failures: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        newest = 0
        try:
            while not done.is_set():
                version = resolve(catalog, "orders").version
                assert version >= newest
                newest = version
        except (AssertionError, AdapterNotFound, CatalogUnreadable) as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(2, 20):
        publish(catalog, number=number)
    done.set()
    for reader in readers:
        reader.join(10)
    assert failures == []


def publish_many(folder: Path, first: int, start) -> None:
    start.wait(10)
    for number in range(first, first + 8):
        with Catalog.open(folder) as catalog:
            publish(catalog, number=number)


def test_processes_that_publish_at_once_all_get_their_own_versions(tmp_path) -> None:
    """Each opens the catalog anew, so that they race to create it, too."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    workers = [
        context.Process(target=publish_many, args=(tmp_path / "new", 1 + 100 * n, start))
        for n in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with Catalog.open(tmp_path / "new", create=False) as catalog:
        versions = catalog.list_versions()
        assert [version.version for version in versions] == list(range(1, 25))
        assert len({version.digest for version in versions}) == 24
        assert resolve(catalog, "orders").version == 24


def test_a_number_taken_meanwhile_is_tried_again(catalog, monkeypatch) -> None:
    """What happens on databases whose writers do not queue."""
    point = catalog_module._point
    failures = iter([True, True, False])

    def collide(connection, *rest) -> None:
        if next(failures):
            row = {"name": "orders", "alias": "x", "version": 1}
            connection.execute(insert(schema.aliases), [row, row])
        point(connection, *rest)

    monkeypatch.setattr(catalog_module, "_point", collide)
    assert publish(catalog).version == 1
    assert len(catalog.list_events()) == 2


def test_a_collision_that_never_ends_is_an_error(catalog, monkeypatch) -> None:
    def collide(*_: object) -> None:
        raise IntegrityError("insert", {}, sqlite3.IntegrityError("taken"))

    monkeypatch.setattr(catalog_module, "_point", collide)
    with pytest.raises(CatalogUnreadable, match="taken"):
        publish(catalog)
    assert catalog.list_versions() == []


def test_readers_do_not_wait_for_a_writer(catalog, tmp_path) -> None:
    publish(catalog)
    writer = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM aliases")
    started = time.perf_counter()
    assert resolve(catalog, "orders@1").version == 1
    assert resolve(catalog, "orders").version == 1
    assert time.perf_counter() - started < 1
    writer.close()


def test_a_database_held_locked_is_a_clear_error(catalog, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Catalog.open(tmp_path) as other, pytest.raises(CatalogUnreadable, match="locked"):
        publish(other)
    holder.close()


def test_the_catalog_opens_again_with_everything_in_it(tmp_path) -> None:
    with Catalog.open(tmp_path) as catalog:
        version = publish(catalog, provenance={"a": [1]})
    with Catalog.open(tmp_path, create=False) as catalog:
        assert catalog.list_versions() == [version]


def test_what_was_published_survives_a_power_cut(tmp_path, monkeypatch) -> None:
    monkeypatch.undo()
    engine = schema.open_engine(schema.sqlite_url(tmp_path / "x.db"), create=True)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
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


def test_another_schema_version_is_a_clear_error(tmp_path) -> None:
    Catalog.open(tmp_path).close()
    database = sqlite3.connect(tmp_path / "catalog.db")
    database.execute("UPDATE schema_version SET version = 7")
    database.commit()
    database.close()
    with pytest.raises(SchemaMismatch, match="has schema 7, this program reads schema 1"):
        Catalog.open(tmp_path)


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/name", "postgresql+nosuch://host/x"])
def test_an_address_that_is_no_database_is_a_clear_error(tmp_path, url) -> None:
    with pytest.raises(CatalogUnreadable):
        Catalog.open(tmp_path, url=url)


def test_a_url_replaces_the_file_in_the_store(tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    with Catalog.open(tmp_path / "store", url=url) as catalog:
        publish(catalog)
    assert not (tmp_path / "store").exists()
    with Catalog.open(tmp_path / "store", url=url, create=False) as catalog:
        assert resolve(catalog, "orders").version == 1


def test_over_a_network_a_change_is_seen_after_a_bounded_time(tmp_path) -> None:
    engine = schema.open_engine(schema.sqlite_url(tmp_path / "x.db"), create=True)
    shared = EventFreshness(engine, max_age=0.2)
    with (
        Catalog(engine, shared) as reader,
        Catalog.open(tmp_path, f"sqlite:///{tmp_path}/x.db") as w,
    ):
        publish(w, number=1)
        assert resolve(reader, "orders").version == 1
        publish(w, number=2)
        deadline = time.monotonic() + 5
        while resolve(reader, "orders").version == 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert resolve(reader, "orders").version == 2


def test_passwords_in_the_address_are_not_told() -> None:
    engine: Any = SimpleNamespace(url=make_url("postgresql+psycopg://ann:secret@host/x"))
    assert "ann:***@host" in str(schema.unreadable(engine, Exception("down")))

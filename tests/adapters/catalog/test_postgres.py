"""A catalog in PostgreSQL: outages, secrets, writers that queue."""

import logging
import threading
import time
from collections.abc import Callable

import psycopg
import pytest
from postgres_process import PASSWORD
from publishing import publish

from adapters.catalog import Catalog, database, failures
from adapters.errors import CatalogReplaced, CatalogUnreadable, SchemaMismatch, StoreReadOnly
from adapters.names import parse_reference
from adapters.store import Store
from adapters.upkeep import audit

ORDERS = parse_reference("orders")


def wait_until(what: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def remember(catalog: Catalog) -> None:
    """Cache an answer after the first poll, which empties the cache."""
    catalog.resolve(ORDERS)
    wait_until(lambda: catalog._transactions._freshness._newest is not None)
    catalog.resolve(ORDERS)
    assert catalog.remembered(ORDERS) is not None


def test_the_last_answers_are_served_while_the_database_is_away(
    enter, postgres, tmp_path, caplog
) -> None:
    caplog.set_level(logging.WARNING, "lorry.catalog")
    with Catalog.open(tmp_path, postgres.url) as catalog:
        enter(catalog)
        remember(catalog)
        try:
            postgres.stop()
            wait_until(lambda: caplog.records)
            assert catalog.resolve(ORDERS).version == 1
            assert catalog.remembered(ORDERS, "ann").version == 1
            with pytest.raises(CatalogUnreadable):
                catalog.resolve(parse_reference("orders@1"))
            assert catalog.remembered(parse_reference("orders@1")) is None
            time.sleep(0.6)
            assert len(caplog.records) == 1, "once a minute is enough"
        finally:
            postgres.start()
        wait_until(lambda: len(caplog.records) == 2)
        assert "answers again" in caplog.messages[1]
        assert catalog.resolve(parse_reference("orders@1")).version == 1
        with Catalog.open(tmp_path, postgres.url) as other:
            enter(other, number=2)
        wait_until(lambda: catalog.resolve(ORDERS).version == 2, seconds=1)
    assert PASSWORD not in caplog.text


def test_remembering_never_waits_for_the_network(enter, postgres, tmp_path, monkeypatch) -> None:
    with Catalog.open(tmp_path, postgres.url) as catalog:
        enter(catalog)
        remember(catalog)
        asked_by = set()
        connect = catalog._transactions.engine.connect
        monkeypatch.setattr(
            catalog._transactions.engine,
            "connect",
            lambda: asked_by.add(threading.current_thread().name) or connect(),
        )
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert catalog.remembered(ORDERS) is not None
            assert catalog.remembered(parse_reference("nobody")) is None
        assert asked_by == {"catalog"}


def test_a_database_that_is_not_there_is_a_clear_error_without_the_password(
    postgres, tmp_path
) -> None:
    for url, said in (
        (postgres.url.replace(f":{postgres.port}/", ":1/"), "refused"),
        (postgres.url.replace("p%2Fs", "wrong"), "authentication"),
        (postgres.url.replace("/postgres", "/nothing"), "does not exist"),
        (f"postgresql://lorry:{PASSWORD}@127.0.0.1/name", "not a URL"),
        ("postgresql://ann:x@p/s@127.0.0.1:1/name", "not a URL"),
        ("postgresql://ann:x@p%2Fs@127.0.0.1/name", "not a URL"),
        ("mysql://ann:p%2Fs@host/name", "not supported"),
    ):
        with pytest.raises(CatalogUnreadable) as error:
            Catalog.open(tmp_path, url)
        whole = f"{error.value} {error.value.__cause__}"
        assert said in whole
        assert "p/s" not in whole
        assert "p%2Fs" not in whole


def test_a_password_in_the_query_is_not_shown_either(postgres) -> None:
    engine = database._make_engine("postgresql://ann@host/name?password=secret")
    assert "secret" not in str(failures.unreadable(engine, Exception("down")))
    engine.dispose()


def test_an_empty_database_is_made_a_catalog_only_by_writing(postgres, tmp_path) -> None:
    with pytest.raises(SchemaMismatch, match="is not a catalog"):
        Catalog.open(tmp_path, postgres.url, create=False)
    Catalog.open(tmp_path, postgres.url).close()
    Catalog.open(tmp_path, postgres.url, create=False).close()


def test_a_writer_that_holds_the_lock_too_long_is_a_clear_error(
    enter, postgres, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.6)
    # The statement timeout must not end the wait for the lock, which may take longer.
    monkeypatch.setitem(database.POSTGRESQL_OPTIONS, "options", "-c statement_timeout=300")
    with Catalog.open(tmp_path, postgres.url) as catalog, psycopg.connect(postgres.url) as holder:
        enter(catalog)
        holder.execute(f"SELECT pg_advisory_xact_lock({database.WRITERS_LOCK})")
        with pytest.raises(CatalogUnreadable, match="lock timeout"):
            enter(catalog, number=2)
        assert catalog.resolve(ORDERS).version == 1


def test_a_database_that_never_answers_is_a_clear_error_and_what_is_known_is_served(
    enter, postgres, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(database.POSTGRESQL_OPTIONS, "options", "-c statement_timeout=300")
    with Catalog.open(tmp_path, postgres.url) as catalog, psycopg.connect(postgres.url) as holder:
        enter(catalog)
        remember(catalog)
        holder.execute("LOCK TABLE versions IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(CatalogUnreadable, match="statement timeout"):
            catalog.resolve(parse_reference("orders@1"))
        assert time.monotonic() - began < 5
        assert catalog.resolve(ORDERS).version == 1
        holder.rollback()
        assert catalog.resolve(parse_reference("orders@1")).version == 1


def test_a_catalog_for_several_servers_beside_a_store(kit, base_folder, postgres, tmp_path) -> None:
    store, folder = tmp_path / "store", kit.build().write(tmp_path / "a")
    version = publish(
        folder, name="orders", store=store, base=base_folder, catalog_url=postgres.url
    )
    assert version.label == "orders@1"
    assert not (store / "catalog.db").exists()
    with Catalog.open(store, postgres.url, create=False) as catalog:
        assert [finding.status for finding in audit(Store(store), catalog)] == ["ok"]


def test_a_database_restored_from_an_older_dump_is_answered_from(enter, postgres, tmp_path) -> None:
    with Catalog.open(tmp_path, postgres.url) as catalog:
        enter(catalog)
        enter(catalog, number=2)
        remember(catalog)
        with psycopg.connect(postgres.url) as restore:  # the same number of events as before
            restore.execute("UPDATE targets SET version = 1")
            restore.execute("UPDATE events SET happened_at = happened_at - interval '1 day'")
        wait_until(lambda: catalog.resolve(ORDERS).version == 1, seconds=1)
        catalog.check()


def test_another_catalog_at_the_address_is_refused_and_what_is_known_is_answered(
    enter, postgres, tmp_path
) -> None:
    with Catalog.open(tmp_path, postgres.url) as catalog:
        enter(catalog)
        remember(catalog)
        with psycopg.connect(postgres.url) as other:
            (right,) = other.execute("SELECT id FROM catalog_id").fetchone()
            other.execute("UPDATE catalog_id SET id = 'of-another-store'")
        wait_until(lambda: catalog._transactions._freshness.problem() is not None)
        for ask in (catalog.check, catalog.list_versions, lambda: enter(catalog, number=2)):
            with pytest.raises(CatalogReplaced):
                ask()
        assert catalog.resolve(ORDERS).version == 1
        with psycopg.connect(postgres.url) as other:
            other.execute("UPDATE catalog_id SET id = %s", [right])
        wait_until(lambda: catalog._transactions._freshness.problem() is None)
        catalog.check()


def test_a_database_that_is_away_is_not_waited_for_twice(
    enter, postgres, tmp_path, monkeypatch
) -> None:
    with Catalog.open(tmp_path, postgres.url) as catalog:
        enter(catalog)
        remember(catalog)
        try:
            postgres.stop()
            wait_until(lambda: catalog._transactions._freshness.problem() is not None)
            connect, asked_by = catalog._transactions.engine.connect, set()
            monkeypatch.setattr(
                catalog._transactions.engine,
                "connect",
                lambda: asked_by.add(threading.current_thread().name) or connect(),
            )
            for number in range(200):
                with pytest.raises(CatalogUnreadable, match="cannot be used"):
                    catalog.resolve(parse_reference(f"unknown{number}"))
            with pytest.raises(CatalogUnreadable):
                enter(catalog, number=2)
            assert asked_by <= {"catalog"}
        finally:
            postgres.start()


def test_a_database_that_only_reads_says_so(enter, postgres, tmp_path) -> None:
    with Catalog.open(tmp_path, postgres.url) as catalog:
        enter(catalog)
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            admin.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        try:
            with Catalog.open(tmp_path, postgres.url) as standby:
                assert standby.resolve(ORDERS).version == 1
                with pytest.raises(StoreReadOnly):
                    enter(standby, number=2)
        finally:
            with psycopg.connect(postgres.url, autocommit=True) as admin:
                admin.execute("SET default_transaction_read_only = off")
                admin.execute("ALTER DATABASE postgres RESET default_transaction_read_only")

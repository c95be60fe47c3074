"""Connects to the catalog's database: SQLite by default, PostgreSQL by URL.

On both, readers see one snapshot and never wait, and writers queue: a version number is given once,
and events are numbered in the order of their commits. Knows nothing of what the tables mean.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from adapters.catalog import schema
from adapters.errors import CatalogUnreadable, SchemaMismatch, quote

BUSY_SECONDS = 10.0
STATEMENT_SECONDS = 5.0
# The advisory lock that all writers of a PostgreSQL catalog take; the number is "lorry" in ASCII.
WRITERS_LOCK = 0x6C6F727279
POSTGRESQL = "postgresql+psycopg"
# Detect a lost database in seconds; the kernel's defaults take a quarter of an hour.
POSTGRESQL_OPTIONS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 5000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    # For a database that accepts connections but never answers.
    "options": f"-c statement_timeout={int(STATEMENT_SECONDS * 1000)}",
}


def sqlite_url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def open_engine(url: str | URL, *, create: bool) -> Engine:
    """An engine on a database that is a catalog; with `create`, an empty one becomes a catalog.

    Raises CatalogUnreadable or SchemaMismatch.
    """
    engine = _make_engine(url)
    try:
        _prepare(engine, create=create)
    except (SQLAlchemyError, sqlite3.Error) as error:
        engine.dispose()
        raise unreadable(engine, error) from error
    except SchemaMismatch:
        engine.dispose()
        raise
    return engine


def writing(engine: Engine) -> Engine:
    """The same engine, for writers: each transaction waits for the other writers when it begins."""
    return engine.execution_options(is_writing=True)


def address(engine: Engine) -> str:
    """The database's address without secrets: the query of a URL may hold a password too."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def unreadable(engine: Engine, error: Exception) -> CatalogUnreadable:
    cause = getattr(error, "orig", None) or error
    return CatalogUnreadable(
        f"the catalog {quote(address(engine))} cannot be used: {quote(str(cause))}",
        "check the address, its rights, that there is free space and that no one holds it locked",
    )


def _make_engine(url: str | URL) -> Engine:
    # A library's message may quote the address with its password, so none is passed on.
    try:
        where = make_url(url)
    except (ArgumentError, ValueError):
        raise _no_address("is not a URL") from None
    if where.drivername != "sqlite" and "@" in f"{where.host}{where.database}":
        # The end of a password that is not escaped; messages would show it as part of the host.
        raise _no_address("is not a URL")
    if where.drivername in ("postgres", "postgresql"):
        where = where.set(drivername=POSTGRESQL)
    try:
        match where.drivername:
            case "sqlite" if where.database in (None, "", ":memory:"):
                raise _no_address("names no file")
            case "sqlite":
                engine = create_engine(where)
                event.listen(engine, "connect", _configure_sqlite)
                event.listen(engine, "begin", _begin_sqlite)
            case "postgresql+psycopg":
                engine = create_engine(
                    where,
                    connect_args=POSTGRESQL_OPTIONS,
                    isolation_level="REPEATABLE READ",
                    pool_pre_ping=True,
                )
                event.listen(engine, "begin", _begin_postgresql)
            case _:
                raise _no_address("is of a database that is not supported")
    except ArgumentError:
        raise _no_address("is not a URL") from None
    except (ImportError, NoSuchModuleError) as error:
        raise CatalogUnreadable(
            "a catalog in PostgreSQL needs psycopg, which is not installed",
            "install it where Lorry runs: python -m pip install 'psycopg[binary]'",
        ) from error
    return engine


def _no_address(said: str) -> CatalogUnreadable:
    return CatalogUnreadable(
        f"the catalog's address {said}",
        "write postgresql://USER:PASSWORD@HOST/NAME (in a password / is %2F, @ is %40, : is %3A),"
        " or sqlite:///PATH",
    )


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA foreign_keys = ON")
    # A publish that was reported as done survives a power cut.
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _is_writing(connection) else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if _is_writing(connection):
        # The lock takes a statement of its own: later ones see everything committed before it.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(BUSY_SECONDS * 1000)}")
        # The usual statement timeout is shorter than the wait for the lock and would end it.
        patience = int((BUSY_SECONDS + STATEMENT_SECONDS) * 1000)
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {patience}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")


def _is_writing(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("is_writing", False))


def _prepare(engine: Engine, *, create: bool) -> None:
    found = _find_schema(engine)
    if found is None and not create:
        raise SchemaMismatch(
            f"the database {quote(address(engine))} is not a catalog",
            "check the store's path or the catalog's address",
        )
    if found is None:
        if engine.dialect.name == "sqlite":
            _enter_wal(engine)
        _create_tables(engine)
    elif found != schema.HEAD:
        raise SchemaMismatch(
            f"the catalog {quote(address(engine))} has schema {found},"
            f" this program reads schema {schema.HEAD}",
            "use the version of Lorry that wrote it or a newer one, or another store",
        )


def _create_tables(engine: Engine) -> None:
    from adapters.catalog.migrations import upgrade  # with Alembic, which is slow to import

    with writing(engine).begin() as connection:
        upgrade(connection)  # does nothing where another process was first


def _find_schema(engine: Engine) -> str | None:
    """The schema of a database; None for one that is not a catalog."""
    with engine.connect() as connection:
        if not inspect(connection).has_table(schema.revision.name):
            return None
        return str(connection.scalar(select(schema.revision.c.version_num)))


def _enter_wal(engine: Engine) -> None:
    # SQLite refuses concurrent switches to WAL at once, whatever the busy timeout.
    deadline = time.monotonic() + BUSY_SECONDS
    raw = engine.raw_connection()
    try:
        while True:
            try:
                raw.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    finally:
        raw.close()

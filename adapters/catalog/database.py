"""Connects to the catalog's database: SQLite by default, PostgreSQL by URL.

On both, readers see one snapshot, and writers queue: a version number is given once, and events are
numbered in the order of their commits. Knows nothing of what the tables mean.

A SQLite file may be replaced, and its disk may be full or read-only. So each use opens it anew, by
its path, and changes are protected by a rollback journal, not by a write-ahead log: reading creates
no file beside it, and no log of an earlier file is taken for that of a later one. Nothing else in
this process may open the file: closing it would release SQLite's locks on it.
"""

import os
import sqlite3
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote as percent_encode

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from adapters.catalog import schema
from adapters.catalog.failures import (
    damaged,
    no_catalog,
    other_schema,
    replaced,
    sqlite_path,
    unreadable,
    unwritten,
)
from adapters.errors import CatalogUnreadable, SchemaMismatch

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
        raise (unwritten if create else unreadable)(engine, error) from error
    except SchemaMismatch:
        engine.dispose()
        raise
    return engine


def writing(engine: Engine) -> Engine:
    """The same engine, for writers: each transaction waits for the other writers when it begins."""
    return engine.execution_options(is_writing=True)


def identify(engine: Engine) -> str:
    """The id of the catalog in a database, which is left if it has none.

    Raises CatalogUnreadable or SchemaMismatch.
    """
    try:
        with engine.connect() as connection:
            return read_id(connection)
    except (SQLAlchemyError, sqlite3.Error) as error:
        engine.dispose()
        raise unreadable(engine, error) from error


def read_id(connection: Connection) -> str:
    """The catalog's id; raises SchemaMismatch for a database of another schema."""
    revision = select(schema.revision.c.version_num).scalar_subquery()
    query = select(schema.identity.c.id, revision.label("version_num"))
    found = connection.execute(query).first()
    if found is None:
        raise no_catalog(connection.engine)
    if found.version_num != schema.HEAD:
        raise other_schema(connection.engine, found.version_num)
    return str(found.id)


def check_id(connection: Connection, expected: str) -> None:
    """Raises CatalogReplaced for another catalog than the expected one, or SchemaMismatch."""
    if read_id(connection) != expected:
        raise replaced(connection.engine)


def check_sound(connection: Connection) -> None:
    """Raises CatalogUnreadable for a SQLite file that is damaged; looks at all of it."""
    if connection.dialect.name != "sqlite":
        return
    said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if said != "ok":
        raise damaged(connection.engine, str(said))


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
                where = where.set(database=str(Path(where.database or "").absolute()))
                connect = partial(connect_sqlite, Path(where.database or ""))
                engine = create_engine(where, creator=connect, poolclass=NullPool)
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


def connect_sqlite(path: Path, seconds: float | None = None) -> sqlite3.Connection:
    """A connection to the file that is at this path now; one that is not there is not made.

    `seconds`: how long its statements wait for a lock. Raises sqlite3.Error.
    """
    where = f"file:{percent_encode(str(path))}"
    options: dict[str, Any] = {
        "uri": True,
        "check_same_thread": False,
        "timeout": BUSY_SECONDS if seconds is None else seconds,
    }
    connection: sqlite3.Connection = sqlite3.connect(f"{where}?mode=rw", **options)
    try:
        connection.execute("PRAGMA schema_version").fetchall()
    except sqlite3.Error as error:
        connection.close()
        if error.sqlite_errorcode != sqlite3.SQLITE_CANTOPEN or _can_have_log(path):
            raise
        # It has a write-ahead log's header, but no log: it is whole, and nobody here can change it.
        connection = sqlite3.connect(f"{where}?immutable=1", **options)
    return connection


def copy_sqlite(path: Path, copy: Path) -> None:
    """Copy a database that may be in use, as one state of it; raises sqlite3.Error."""
    with closing(connect_sqlite(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)  # durable: SQLite syncs at its end


def _can_have_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return os.access(path.parent, os.W_OK) or (log.exists() and log.stat().st_size > 0)


def leave_wal(connection: sqlite3.Connection) -> None:
    """Take a file out of SQLite's write-ahead logging, unless others use it or it is read-only."""
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA foreign_keys = ON")
    # A publish that was reported as done survives a power cut. FULL would not do: it does not sync
    # the folder after the journal is deleted, and a journal that comes back undoes the commit.
    connection.execute("PRAGMA synchronous = EXTRA")


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
    path = sqlite_path(engine)
    if create and path is not None and not path.exists():
        sqlite3.connect(path).close()  # it makes an empty file
    found = _find_schema(engine)
    if found is None and not create:
        raise no_catalog(engine)
    if found is None:
        _create_tables(engine)
    elif found != schema.HEAD:
        raise other_schema(engine, found)


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

"""The catalog's tables, and a database engine that has them. Knows nothing of what they mean.

SQLite runs in WAL mode with transactions begun by us: readers never wait, writers queue.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from adapters.errors import CatalogUnreadable, SchemaMismatch, quote
from adapters.names import MAX_ALIAS, MAX_NAME

SCHEMA_VERSION = 1
BUSY_SECONDS = 10.0

metadata = MetaData()
schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))
adapters = Table(
    "adapters",
    metadata,
    Column("name", String(MAX_NAME), primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("name", ForeignKey("adapters.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(71), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("alpha", Float, nullable=False),
    Column("base", String, nullable=False),
    Column("base_digest", String(71)),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("provenance", JSON),
    # The same bytes are one version of a name, whoever publishes them at the same moment.
    UniqueConstraint("name", "digest"),
)
aliases = Table(
    "aliases",
    metadata,
    Column("name", String(MAX_NAME), primary_key=True),
    Column("alias", String(MAX_ALIAS), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
)
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("happened_at", DateTime(timezone=True), nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("name", String(MAX_NAME), nullable=False),
    Column("detail", JSON, nullable=False),
)


def sqlite_url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def open_engine(url: str | URL, *, create: bool) -> Engine:
    """An engine on a database that has our schema; raises CatalogUnreadable, SchemaMismatch."""
    try:
        engine = create_engine(url)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise CatalogUnreadable(
            f"the catalog's address is no database: {quote(str(error))}",
            "write it as SQLAlchemy does, for example postgresql+psycopg://host/name",
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
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
    """The same engine, whose transactions take SQLite's write lock when they begin."""
    return engine.execution_options(is_writing=True)


def address(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)


def unreadable(engine: Engine, error: Exception) -> CatalogUnreadable:
    cause = getattr(error, "orig", None) or error
    return CatalogUnreadable(
        f"the catalog {quote(address(engine))} cannot be used: {quote(str(cause))}",
        "check the address, its rights and that no one holds it locked",
    )


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA foreign_keys = ON")
    # A publish that was reported done survives a power cut.
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _prepare(engine: Engine, *, create: bool) -> None:
    if create and engine.dialect.name == "sqlite":
        _enter_wal(engine)
    with engine.connect() as connection:
        exists = inspect(connection).has_table(schema_version.name)
    if not exists and create:
        with writing(engine).begin() as connection:
            metadata.create_all(connection)
            if connection.scalar(select(func.count()).select_from(schema_version)) == 0:
                connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
    elif not exists:
        raise SchemaMismatch(
            f"the database {quote(address(engine))} is not a catalog",
            "check the store's path",
        )
    _check_version(engine)


def _enter_wal(engine: Engine) -> None:
    # Processes that enter at the same moment are turned away at once, whatever the busy timeout.
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


def _check_version(engine: Engine) -> None:
    with engine.connect() as connection:
        found = connection.scalar(select(func.max(schema_version.c.version)))
    if found != SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the catalog {quote(address(engine))} has schema {found},"
            f" this program reads schema {SCHEMA_VERSION}",
            "use the version of the program that wrote it, or another store",
        )

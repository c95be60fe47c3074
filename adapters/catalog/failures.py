"""What a database's error means for a catalog: damaged, replaced, read-only, full, or away.

Knows nothing of how a database is reached or of what its tables mean.
"""

import sqlite3
import tempfile
from pathlib import Path

from sqlalchemy import Engine

from adapters.catalog import schema
from adapters.errors import (
    AdapterError,
    CatalogReplaced,
    CatalogUnreadable,
    SchemaMismatch,
    StoreFull,
    StoreReadOnly,
    quote,
    unwritable,
)

TRIED_BYTES = 1 << 16
HINTS = {
    StoreReadOnly: "nothing was changed: it can be read, but changes need a place to write",
    StoreFull: "nothing was changed: free space, then try again",
}


def address(engine: Engine) -> str:
    """The database's address without secrets: the query of a URL may hold a password too."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def sqlite_path(engine: Engine) -> Path | None:
    """The file of a SQLite database; None for another one."""
    return Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None


def no_catalog(engine: Engine) -> SchemaMismatch:
    return SchemaMismatch(
        f"the database {quote(address(engine))} is not a catalog",
        "check the store's path or the catalog's address",
    )


def other_schema(engine: Engine, found: str) -> SchemaMismatch:
    return SchemaMismatch(
        f"the catalog {quote(address(engine))} has schema {found},"
        f" this program reads schema {schema.HEAD}",
        "use the version of Lorry that wrote it or a newer one, or another store",
    )


def damaged(engine: Engine, said: str) -> CatalogUnreadable:
    return CatalogUnreadable(
        f"the catalog {quote(address(engine))} is damaged: {quote(said)}",
        "bring back a backup of it",
    )


def replaced(engine: Engine) -> CatalogReplaced:
    return CatalogReplaced(
        f"the catalog {quote(address(engine))} is another one than before",
        "bring back the one that this store belongs to",
    )


def lost_change(engine: Engine) -> CatalogReplaced:
    return CatalogReplaced(
        f"the catalog {quote(address(engine))} was replaced during the change, which is not in it",
        "look at what it holds now, then make the change again",
    )


def unreadable(engine: Engine, error: Exception) -> AdapterError:
    """The error to raise for a database's: CatalogUnreadable, or for a failed write StoreReadOnly
    or StoreFull where the database says so."""
    cause = getattr(error, "orig", None) or error
    where, said = quote(address(engine)), quote(str(cause))
    path = sqlite_path(engine)
    if path is not None and _is_missing(path):
        said = "there is no such file"
    if getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_DBMOVED:
        return lost_change(engine)
    if kind := _kind_of_failed_write(cause):
        return kind(f"the catalog {where} cannot be written: {said}", HINTS[kind])
    return CatalogUnreadable(
        f"the catalog {where} cannot be used: {said}",
        "check the address, its rights, that there is free space and that no one holds it locked",
    )


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _kind_of_failed_write(cause: BaseException) -> type[StoreReadOnly | StoreFull] | None:
    code = getattr(cause, "sqlite_errorcode", 0)
    state = getattr(cause, "sqlstate", "")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_READONLY_DIRECTORY) or state == "25006":
        return StoreReadOnly
    if code & 0xFF == sqlite3.SQLITE_FULL or state == "53100":
        return StoreFull
    return None


def unwritten(engine: Engine, error: Exception) -> AdapterError:
    """Like `unreadable`, for an error while writing: SQLite does not tell a folder in which it
    can't make its journal from other faults, so the folder is tried."""
    found = unreadable(engine, error)
    path = sqlite_path(engine)
    if not isinstance(found, CatalogUnreadable) or path is None:
        return found
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlite_errorcode", 0)
    if code & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
        return found
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(TRIED_BYTES))
    except OSError as refused:
        said = f"the catalog {quote(address(engine))} cannot be written"
        reason = unwritable(said, refused, "nothing was changed: check its folder, then try again")
        return reason if isinstance(reason, StoreReadOnly | StoreFull) else found
    return found

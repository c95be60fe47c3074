"""Detects cheaply whether a catalog may have changed, so that answers can be cached.

Never waits for a network: a thread polls a remote database. Knows nothing of the catalog's content.
"""

import logging
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sqlalchemy import Engine

from adapters.catalog.database import check_id, connect_sqlite, leave_wal
from adapters.catalog.failures import sqlite_path, unreadable
from adapters.catalog.history import read_newest
from adapters.errors import AdapterError

logger = logging.getLogger("lorry.catalog")

POLL_SECONDS = 0.2
COMPLAINT_SECONDS = 60.0
CLOSE_SECONDS = 1.0

File = tuple[int, int, int, int, int]


class Freshness(Protocol):
    """`mark` returns a value that differs from the previous one if the catalog may have changed.

    While the catalog can't be used, the mark stays: what was read before is still answered.
    """

    def mark(self) -> object: ...

    def wrote(self) -> None:
        """Called after each change through this catalog."""

    def problem(self) -> AdapterError | None:
        """Why a query would wait in vain now, if that is known."""

    def close(self) -> None: ...


class SqliteFreshness:
    """Counts the states of a SQLite file: commits of any process, and files in its place.

    A look takes microseconds and never waits, and the next call sees every change. It compares the
    file at the path with the one that was opened, and SQLite's data_version, which every commit of
    another connection changes; this one never writes.
    """

    def __init__(self, path: Path, catalog_id: str) -> None:
        self._path = path
        self._id = catalog_id
        self._connection: sqlite3.Connection | None = None
        self._file: File | None = None
        self._refused: File | None = None
        self._version = 0
        self._mark = 0

    def mark(self) -> int:
        # An OSError: there is no file. A sqlite3.Error: a commit is under way, or the file is
        # damaged or another catalog's. In each case the last state stays.
        with suppress(OSError, sqlite3.Error):
            file = _identify(self._path)
            if file == self._refused:
                return self._mark
            if self._connection is None or file != self._file or self._has_new_version():
                self._reopen()
        return self._mark

    def _has_new_version(self) -> bool:
        assert self._connection is not None
        return _data_version(self._connection) != self._version

    def _reopen(self) -> None:
        """Look at the file that is there now; raises sqlite3.Error unless it is this catalog."""
        file = _identify(self._path)
        connection = connect_sqlite(self._path, seconds=0)
        try:
            row = connection.execute("SELECT id FROM catalog_id").fetchone()
            if row != (self._id,):
                raise sqlite3.DatabaseError("another catalog")
        except sqlite3.Error as error:
            connection.close()
            if not isinstance(error, sqlite3.OperationalError):  # a lock passes, this does not
                self._refused = file
            raise
        self.close()
        leave_wal(connection)
        self._connection, self._version = connection, _data_version(connection)
        self._file, self._refused = _identify(self._path), None
        self._mark += 1

    def wrote(self) -> None:
        """Nothing to do: data_version changes."""

    def problem(self) -> None:
        """None: a query finds out at once."""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _identify(path: Path) -> File:
    """Device, inode, size, mtime and ctime: they differ for a file that is replaced or copied over,
    even by one of the same content."""
    status = path.stat()
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _data_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA data_version").fetchall()[0]
    return int(version)


class PolledFreshness:
    """The newest event, polled by a thread.

    A change by another process is seen after `interval` and one query at most, our own at once.
    """

    def __init__(self, engine: Engine, catalog_id: str, interval: float = POLL_SECONDS) -> None:
        self._engine = engine
        self._id = catalog_id
        self._interval = interval
        self._own = object()
        self._newest: object = None
        self._problem: AdapterError | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._complained_at: float | None = None

    def mark(self) -> object:
        if self._thread is None:  # only now: a command that never reads needs no thread
            self._thread = threading.Thread(target=self._poll, name="catalog", daemon=True)
            self._thread.start()
        return self._own, self._newest

    def wrote(self) -> None:
        self._own = object()

    def problem(self) -> AdapterError | None:
        """The error of the last poll, as a new object: a raised one keeps its traceback."""
        found = self._problem
        return type(found)(found.message, found.hint) if found else None

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _poll(self) -> None:
        while not self._closing.is_set():
            try:
                with self._engine.connect() as connection:
                    check_id(connection, self._id)
                    self._newest = read_newest(connection)
            except AdapterError as error:
                self._complain(error)
            except Exception as error:  # noqa: BLE001 - after any error the next poll may succeed
                self._complain(unreadable(self._engine, error))
            else:
                self._welcome_back()
            self._closing.wait(self._interval)

    def _complain(self, error: AdapterError) -> None:
        self._problem = error
        now = time.monotonic()
        if self._complained_at is None or now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            logger.error("%s; cached answers are still served", error.message)

    def _welcome_back(self) -> None:
        self._problem = None
        if self._complained_at is not None:
            self._complained_at = None
            logger.warning("the catalog answers again")


def watch(engine: Engine, catalog_id: str) -> Freshness:
    path = sqlite_path(engine)
    return (
        PolledFreshness(engine, catalog_id) if path is None else SqliteFreshness(path, catalog_id)
    )

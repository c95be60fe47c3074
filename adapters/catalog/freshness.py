"""Detects cheaply whether a catalog may have changed, so that answers can be cached.

Never waits for a network: a thread polls a remote database. Knows nothing of the catalog's content.
"""

import logging
import threading
import time
from typing import Protocol

from sqlalchemy import Engine, func, select

from adapters.catalog.database import unreadable
from adapters.catalog.schema import events

logger = logging.getLogger("lorry.catalog")

POLL_SECONDS = 0.2
COMPLAINT_SECONDS = 60.0
CLOSE_SECONDS = 1.0


class Freshness(Protocol):
    """`mark` returns a value that differs from the previous one if the catalog may have changed."""

    def mark(self) -> object: ...

    def wrote(self) -> None:
        """Called after each change through this catalog."""

    def close(self) -> None: ...


class SqliteFreshness:
    """SQLite's data_version: every commit of another connection or process changes it.

    This connection never writes, so our own commits, through other connections, count too. A read
    takes microseconds, and the next call sees every change.
    """

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.raw_connection()
        self._cursor = self._connection.cursor()

    def mark(self) -> int:
        self._cursor.execute("PRAGMA data_version")
        (mark,) = self._cursor.fetchall()[0]
        return int(mark)

    def wrote(self) -> None:
        """Nothing to do: data_version changes."""

    def close(self) -> None:
        self._connection.close()


class PolledFreshness:
    """The id of the newest event, polled by a thread.

    A change by another process is seen after `interval` and one query at most, our own at once.
    While the database does not answer, the mark stays, and cached answers stay valid.
    """

    def __init__(self, engine: Engine, interval: float = POLL_SECONDS) -> None:
        self._engine = engine
        self._interval = interval
        self._own = object()
        self._newest: object = object()
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

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _poll(self) -> None:
        while not self._closing.is_set():
            try:
                with self._engine.connect() as connection:
                    self._newest = connection.scalar(select(func.max(events.c.id)))
            except Exception as error:  # noqa: BLE001 - after any error the next poll may succeed
                self._complain(error)
            else:
                self._welcome_back()
            self._closing.wait(self._interval)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if self._complained_at is None or now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            said = unreadable(self._engine, error).message
            logger.error("%s; cached answers are still served", said)

    def _welcome_back(self) -> None:
        if self._complained_at is not None:
            self._complained_at = None
            logger.warning("the catalog answers again")


def watch(engine: Engine) -> Freshness:
    is_sqlite = engine.dialect.name == "sqlite"
    return SqliteFreshness(engine) if is_sqlite else PolledFreshness(engine)

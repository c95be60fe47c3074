"""Tells whether a catalog may have changed since it was last asked, cheaply enough to ask often.

Knows nothing of what the catalog holds. Never waits for a network: a database that is reached over
one is asked by a thread.
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
    """A mark that differs from the one before if the catalog changed meanwhile."""

    def mark(self) -> object: ...

    def wrote(self) -> None:
        """Told after each change of our own."""

    def close(self) -> None: ...


class SqliteFreshness:
    """SQLite's data_version: it moves with every commit of any other connection or process.

    The connection is kept for this alone, so our own commits come through others and count too.
    It costs microseconds and misses nothing: a change is seen by the next call.
    """

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.raw_connection()
        self._cursor = self._connection.cursor()

    def mark(self) -> int:
        self._cursor.execute("PRAGMA data_version")
        (mark,) = self._cursor.fetchall()[0]
        return int(mark)

    def wrote(self) -> None:
        """The database tells."""

    def close(self) -> None:
        self._connection.close()


class PolledFreshness:
    """The newest event's id, asked by a thread: another's change is seen within `interval` and
    one query, our own at once.

    While the database does not answer the mark stays, and so does all that is remembered.
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
        if self._thread is None:  # not before: a command that asks nothing needs no thread
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
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may succeed
                self._complain(error)
            else:
                self._welcome_back()
            self._closing.wait(self._interval)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if self._complained_at is None or now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            said = unreadable(self._engine, error).message
            logger.error("%s; what is remembered of it goes on being served", said)

    def _welcome_back(self) -> None:
        if self._complained_at is not None:
            self._complained_at = None
            logger.warning("the catalog answers again")


def watch(engine: Engine) -> Freshness:
    is_sqlite = engine.dialect.name == "sqlite"
    return SqliteFreshness(engine) if is_sqlite else PolledFreshness(engine)

"""Tells whether a catalog may have changed since it was last asked, cheaply enough to ask often.

Knows nothing of what the catalog holds.
"""

import time
from typing import Protocol

from sqlalchemy import Engine, func, select

from adapters.schema import events

SHARED_MAX_AGE = 0.5


class Freshness(Protocol):
    """A mark that differs from the one before if the catalog changed meanwhile."""

    def mark(self) -> int | None: ...

    def close(self) -> None: ...


class SqliteFreshness:
    """SQLite's data_version: it moves with every commit of any other connection or process.

    The connection is kept for this alone, so our own commits come through others and count too.
    It costs microseconds and misses nothing: a change is seen by the next call.
    """

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.raw_connection()
        self._cursor = self._connection.cursor()

    def mark(self) -> int | None:
        self._cursor.execute("PRAGMA data_version")
        (mark,) = self._cursor.fetchall()[0]
        return int(mark)

    def close(self) -> None:
        self._connection.close()


class EventFreshness:
    """The newest event's id, for databases over a network (PostgreSQL): one query, asked at most
    every `max_age` seconds. A change, our own too, is seen that much later at most."""

    def __init__(self, engine: Engine, max_age: float = SHARED_MAX_AGE) -> None:
        self._engine = engine
        self._max_age = max_age
        self._asked_at = -max_age
        self._mark: int | None = None

    def mark(self) -> int | None:
        if time.monotonic() - self._asked_at >= self._max_age:
            with self._engine.connect() as connection:
                self._mark = connection.scalar(select(func.max(events.c.id)))
            self._asked_at = time.monotonic()
        return self._mark

    def close(self) -> None:
        """Nothing is kept open."""


def watch(engine: Engine) -> Freshness:
    is_sqlite = engine.dialect.name == "sqlite"
    return SqliteFreshness(engine) if is_sqlite else EventFreshness(engine)

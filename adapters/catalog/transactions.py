"""Reads and changes of one catalog's database, and whether it has changed.

Knows nothing of what the tables mean.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from adapters.catalog import database, failures
from adapters.catalog.freshness import watch
from adapters.catalog.history import Mark, has_event, read_newest


class Transactions:
    """Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.id = database.identify(engine)
        self._freshness = watch(engine, self.id)
        self._lock = threading.Lock()

    @property
    def is_shared(self) -> bool:
        """Whether it is on a database server, which other servers may use too."""
        return failures.sqlite_path(self.engine) is None

    def mark(self) -> object:
        """A value that differs from the previous one if the catalog may have changed.

        Never waits for a network. While the catalog can't be used, it stays.
        """
        with self._lock:
            return self._freshness.mark()

    @property
    def is_lost(self) -> bool:
        """Whether it is known that a query would fail now."""
        return self._freshness.problem() is not None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        if problem := self._freshness.problem():
            raise problem
        try:
            with self.engine.connect() as connection:
                database.check_id(connection, self.id)
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise failures.unreadable(self.engine, error) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        if problem := self._freshness.problem():
            raise problem
        try:
            with database.writing(self.engine).begin() as connection:
                database.check_id(connection, self.id)
                yield connection
                newest = read_newest(connection)
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise failures.unwritten(self.engine, error) from error
        self._freshness.wrote()
        self._confirm(newest)

    def close(self) -> None:
        self._freshness.close()
        self.engine.dispose()

    def _confirm(self, newest: Mark | None) -> None:
        """Raises CatalogReplaced if a change is not in the file that is there now.

        A commit to a file that was replaced meanwhile succeeds, and is lost.
        """
        if self.is_shared or newest is None:
            return
        with self.reading() as connection:
            if not has_event(connection, newest):
                raise failures.lost_change(self.engine)

"""Which adapters exist, and which immutable version a name means. Knows nothing of files.

Every change is one transaction and leaves an event. `resolve` is on a server's hot path: answers
are remembered until the database changes, by whomever.
"""

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, Engine, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from adapters import schema
from adapters.errors import StoreUnreadable, StoreUnwritable, quote
from adapters.freshness import Freshness, watch
from adapters.names import STABLE, Reference, check_alias
from adapters.versions import AdapterVersion, as_utc, find_version, select_versions

if TYPE_CHECKING:
    from adapters.checkpoint import Checkpoint  # brings numpy: half a second nobody needs here

__all__ = ["AdapterVersion", "Catalog", "Event"]

DATABASE = "catalog.db"
REMEMBERED = 10_000
PUBLISH_TRIES = 20


@dataclass(frozen=True, slots=True)
class Event:
    """One change, as it was recorded."""

    happened_at: datetime
    actor: str
    action: str
    name: str
    detail: dict[str, Any]


class Catalog:
    """The index of one store; safe to use from several threads and processes."""

    def __init__(self, engine: Engine, freshness: Freshness) -> None:
        self._engine = engine
        self._freshness = freshness
        self._lock = threading.Lock()
        self._mark: int | None = None
        self._known: dict[Reference, AdapterVersion] = {}

    @classmethod
    def open(cls, store_dir: Path, url: str | None = None, create: bool = True) -> Self:
        """Open the catalog of a store, or the one at a SQLAlchemy URL.

        Raises StoreUnreadable, StoreUnwritable, CatalogUnreadable or SchemaMismatch.
        """
        if url is None:
            _check_folder(store_dir, create=create)
        engine = schema.open_engine(url or schema.sqlite_url(store_dir / DATABASE), create=create)
        return cls(engine, watch(engine))

    def close(self) -> None:
        self._freshness.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resolve(self, reference: Reference) -> AdapterVersion:
        """The version a reference means now; raises AdapterNotFound or AmbiguousDigest."""
        with self._translated():
            known = self._current()
            found = known.get(reference)
            if found is None:
                with self._engine.connect() as connection:
                    found = find_version(connection, reference)
                if len(known) < REMEMBERED:
                    known[reference] = found
            return found

    def list_versions(self, name: str | None = None) -> list[AdapterVersion]:
        """All versions, or those of one name, by name and number."""
        wanted = [] if name is None else [schema.versions.c.name == name]
        with self._translated(), self._engine.connect() as connection:
            return select_versions(connection, *wanted)

    def list_events(self) -> list[Event]:
        """Every change so far, oldest first."""
        table = schema.events
        with self._translated(), self._engine.connect() as connection:
            rows = connection.execute(select(table).order_by(table.c.id)).all()
        return [Event(as_utc(r.happened_at), r.actor, r.action, r.name, r.detail) for r in rows]

    def publish(
        self,
        *,
        name: str,
        digest: str,
        checkpoint: "Checkpoint",
        base: str,
        base_digest: str | None = None,
        aliases: Sequence[str] = (STABLE,),
        provenance: Mapping[str, Any] | None = None,
        actor: str,
    ) -> AdapterVersion:
        """Give a digest the next version of a name and point the aliases at it, in one step.

        A digest that the name has already keeps its version; the aliases point at it then.
        """
        for alias in aliases:
            check_alias(alias)
        values = {
            "digest": digest,
            "rank": checkpoint.rank,
            "alpha": checkpoint.alpha,
            "base": base,
            "base_digest": base_digest,
            "size_bytes": checkpoint.size_bytes,
            "provenance": None if provenance is None else dict(provenance),
        }
        with self._translated():
            return self._publish(name, values, aliases, actor)

    def _publish(
        self, name: str, values: Mapping[str, Any], aliases: Sequence[str], actor: str
    ) -> AdapterVersion:
        # Only databases without a lock for all writers let two publishers take one number.
        for attempt in range(1, PUBLISH_TRIES + 1):
            try:
                with schema.writing(self._engine).begin() as connection:
                    number = _ensure_version(connection, name, values, actor)
                    for alias in dict.fromkeys(aliases):
                        _point(connection, name, alias, number, actor)
                    return find_version(connection, Reference(name, number))
            except IntegrityError:
                if attempt == PUBLISH_TRIES:
                    raise
        raise AssertionError("unreachable")

    def _current(self) -> dict[Reference, AdapterVersion]:
        """What is remembered of the catalog as it is now.

        The mark is taken before anything is read, and an answer goes into the dict it was looked
        up for: a late one lands in a forgotten dict, never in a newer one.
        """
        with self._lock:
            mark = self._freshness.mark()
            if mark != self._mark:
                self._mark, self._known = mark, {}
            return self._known

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise schema.unreadable(self._engine, error) from error


def _check_folder(folder: Path, *, create: bool) -> None:
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not (folder / DATABASE).exists():
            raise StoreUnreadable(
                f"there is no adapter store at {quote(str(folder))}",
                "publish an adapter first, or give the store's folder with --store",
            )
    except OSError as error:
        kind = StoreUnwritable if create else StoreUnreadable
        reason = error.strerror or error
        raise kind(
            f"the store {quote(str(folder))}: {reason}", "check the path and its rights"
        ) from error


def _ensure_version(
    connection: Connection, name: str, values: Mapping[str, Any], actor: str
) -> int:
    table, now = schema.versions, datetime.now(UTC)
    same = and_(table.c.name == name, table.c.digest == values["digest"])
    existing = connection.scalar(select(table.c.number).where(same))
    if existing is not None:
        return int(existing)
    newest = connection.scalar(select(func.max(table.c.number)).where(table.c.name == name))
    if newest is None:
        connection.execute(insert(schema.adapters).values(name=name, created_at=now))
    number = (newest or 0) + 1
    connection.execute(insert(table).values(name=name, number=number, created_at=now, **values))
    detail = {"version": number, "digest": values["digest"]}
    _record(connection, actor, "published", name, detail)
    return number


def _point(connection: Connection, name: str, alias: str, number: int, actor: str) -> None:
    table = schema.aliases
    here = and_(table.c.name == name, table.c.alias == alias)
    before = connection.scalar(select(table.c.version).where(here))
    if before == number:
        return
    if before is None:
        connection.execute(insert(table).values(name=name, alias=alias, version=number))
    else:
        connection.execute(update(table).where(here).values(version=number))
    detail = {"alias": alias, "from": before, "to": number}
    _record(connection, actor, "alias_moved", name, detail)


def _record(
    connection: Connection, actor: str, action: str, name: str, detail: Mapping[str, Any]
) -> None:
    connection.execute(
        insert(schema.events).values(
            happened_at=datetime.now(UTC), actor=actor, action=action, name=name, detail=detail
        )
    )

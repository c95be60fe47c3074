"""The catalog: which adapters exist, and which immutable version a name means.

Every change is one transaction and records an event. `resolve` is on a server's hot path: answers
are cached until any process changes the database. Knows nothing of files.
"""

import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import Connection, Engine

from adapters.catalog import changes, database, failures, location, schema
from adapters.catalog.aliases import Alias, check_split, select_aliases
from adapters.catalog.evaluations import (
    NO_GATE,
    Evaluation,
    Evaluations,
    Gate,
    Recorded,
    check_evaluation,
    check_metric,
    select_evaluations,
)
from adapters.catalog.history import Event, select_events
from adapters.catalog.keys import Keys
from adapters.catalog.memory import Known, Shelf
from adapters.catalog.transactions import Transactions
from adapters.catalog.versions import (
    AdapterVersion,
    Meaning,
    Published,
    check_weight,
    interpret,
    select_digests,
    select_labels,
    select_names,
    select_published,
    select_versions,
)
from adapters.errors import (
    AdapterError,
    AdapterNotFound,
    AmbiguousDigest,
    StoreUnreadable,
    quote,
)
from adapters.names import STABLE, Reference, check_alias

if TYPE_CHECKING:
    from adapters.checkpoint import Checkpoint  # imports numpy, which takes half a second

REMEMBERED = 10_000
MOST_NAMES = 100_000
REFRESH_SECONDS = 0.05

K = TypeVar("K")
V = TypeVar("V")


class Catalog:
    """The index of one store; safe to use from several threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._transactions = Transactions(engine)
        self.keys = Keys(self._transactions)
        self._sound: object = None  # the mark of the last state that was found undamaged
        self._lock = threading.Lock()
        self._mark: object = None
        self._known = Known()
        self._forgotten: dict[Reference, None] = {}  # known before the last change

    @classmethod
    def open(cls, store_dir: Path, url: str | None = None, create: bool = True) -> Self:
        """Open the catalog of a store: its own, or the one at a SQLAlchemy URL.

        With `create`, which is for writers, it is made if it is not there, and the store belongs
        to it from then on. Raises StoreUnreadable, StoreUnwritable, CatalogUnreadable or
        SchemaMismatch.
        """
        if not url:
            location.check_own(store_dir, create=create)
        where = url or database.sqlite_url(store_dir / location.DATABASE)
        engine = database.open_engine(where, create=create)
        catalog = cls(engine)
        try:
            if create:
                location.claim(store_dir, catalog._describe())
            elif not url:
                location.check_no_other(store_dir, catalog._describe())
        except AdapterError:
            catalog.close()
            raise
        return catalog

    @property
    def is_shared(self) -> bool:
        """Whether it is on a database server, which other servers may use too."""
        return self._transactions.is_shared

    def check(self) -> None:
        """Raises an AdapterError unless the catalog can be used now, is the one that was opened,
        and, where it is a file that changed, is undamaged. May take seconds. To be called again
        and again by who serves from it: it also renews what is known."""
        mark = self._transactions.mark()
        with self._transactions.reading() as connection:
            if mark != self._sound:
                database.check_sound(connection)
        self._sound = mark
        self._refresh()

    def _refresh(self) -> None:
        """Look up again what was known before the last change, for REFRESH_SECONDS: should the
        catalog be lost, it is still answered."""
        self._current()
        until = time.monotonic() + REFRESH_SECONDS
        while self._forgotten and time.monotonic() < until:
            reference, _ = self._forgotten.popitem()
            with suppress(AdapterNotFound, AmbiguousDigest):
                self._find(reference)

    def claim(self, store_dir: Path) -> None:
        """Let a store belong to this catalog; raises StoreUnreadable if it has another one."""
        location.claim(store_dir, self._describe())

    def copy_to(self, file: Path) -> None:
        """Write a copy of the catalog as it is now, durably; only for one in a file."""
        path = failures.sqlite_path(self._transactions.engine)
        assert path is not None
        try:
            database.copy_sqlite(path, file)
        except sqlite3.Error as error:
            raise failures.unwritten(self._transactions.engine, error) from error

    def check_collectable(self, store_dir: Path) -> None:
        """Raises StoreUnreadable where versions of the store's objects may be unknown here: the
        store is not known to belong to this catalog, or this one never had a version."""
        location.check_owner(store_dir, self._describe())
        if not self.list_events(limit=1):
            raise StoreUnreadable(
                "the catalog has never had a version, so it can't tell which objects of"
                f" {quote(str(store_dir))} are needed",
                "nothing was removed: if the store's catalog was lost, bring it back; else publish"
                " an adapter first",
            )

    def close(self) -> None:
        self._transactions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resolve(self, reference: Reference, key: str | None = None) -> AdapterVersion:
        """The version that a reference means now; raises AdapterNotFound or AmbiguousDigest.

        Of a split, the same `key` always gets the same side; without a key, a random side.
        """
        return self._find(reference).choose(key)

    def resolve_only(self, reference: Reference) -> AdapterVersion:
        """Like `resolve` without a key, but raises AliasIsSplit for a split."""
        return self._find(reference).only()

    def resolve_all(self, reference: Reference) -> list[AdapterVersion]:
        """Every version that a reference means now: of a split, all sides in ascending order."""
        return list(self._find(reference).versions)

    def remembered(self, reference: Reference, key: str | None = None) -> AdapterVersion | None:
        """Like `resolve`, but None where it would have to query a database.

        Raises AdapterNotFound or AmbiguousDigest where that is known already.
        """
        meaning = self._current().find(reference)
        return None if meaning is None else meaning.choose(key)

    def names(self) -> frozenset[str]:
        """The names of adapters that are in memory: all, or none."""
        return self._current().names or frozenset()

    def list_published(self) -> tuple[Published, ...]:
        """The meaning of every bare name now; one cached tuple until the catalog changes."""
        known = self._current()
        if known.published is None:
            with self._transactions.reading() as connection:
                known.published = tuple(select_published(connection))
        return known.published

    def list_versions(self, name: str | None = None) -> list[AdapterVersion]:
        """All versions, or those of one name, by name and number."""
        with self._transactions.reading() as connection:
            return select_versions(connection, *_of(schema.versions, name))

    def list_page(
        self, after: str | None, limit: int
    ) -> tuple[list[AdapterVersion], list[Alias], bool]:
        """The versions and aliases of `limit` names after one, and whether there are more names."""
        with self._transactions.reading() as connection:
            names = select_names(connection, after=after, limit=limit + 1)
            page = names[:limit]
            if not page:
                return [], [], False
            versions, targets = (
                table.c.name.between(page[0], page[-1])
                for table in (schema.versions, schema.targets)
            )
            found = select_versions(connection, versions), select_aliases(connection, targets)
        return *found, len(names) > limit

    def list_labels(self) -> set[str]:
        """NAME@VERSION of every version: cheaper than `list_versions`."""
        with self._transactions.reading() as connection:
            return select_labels(connection)

    def list_aliases(self, *names: str) -> list[Alias]:
        """All aliases, or those of some names, by name and alias."""
        wanted = [schema.targets.c.name.in_(names)] if names else []
        with self._transactions.reading() as connection:
            return select_aliases(connection, *wanted)

    def list_evaluations(self, *names: str) -> Evaluations:
        """The evaluations of the versions of some names, the newest last."""
        with self._transactions.reading() as connection:
            return select_evaluations(connection, schema.evaluations.c.name.in_(names))

    def list_events(self, name: str | None = None, limit: int | None = None) -> list[Event]:
        """Every change so far, or the last `limit`, oldest first."""
        with self._transactions.reading() as connection:
            return select_events(connection, *_of(schema.events, name), limit=limit)

    def pins(self) -> list[AdapterVersion]:
        """The versions that are pinned."""
        with self._transactions.reading() as connection:
            return select_versions(connection, schema.pins.c.version.is_not(None))

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
        any_base: bool = False,
    ) -> AdapterVersion:
        """Make a digest the next version of a name and point the aliases at it, in one transaction.

        If the name has the digest already, the aliases point at that version; raises OtherBase
        where it is for another base, unless `any_base`, and GateRefused where the name has a gate.
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
        with self._transactions.writing() as connection:
            return changes.publish(connection, name, values, aliases, actor, any_base)

    def point(
        self, name: str, alias: str, version: int, *, actor: str, gate: Gate = NO_GATE
    ) -> Alias:
        """Point an alias at one version; raises BadName, AdapterNotFound or GateRefused."""
        return self.split(name, alias, {version: 1}, actor=actor, gate=gate)

    def split(
        self,
        name: str,
        alias: str,
        weights: Mapping[int, int],
        *,
        actor: str,
        gate: Gate = NO_GATE,
    ) -> Alias:
        """Split an alias's requests between versions by weight; each must pass the gates.

        Raises BadName, SplitInvalid, AdapterNotFound or GateRefused.
        """
        check_alias(alias)
        sides = check_split(weights)
        with self._transactions.writing() as connection:
            return changes.point(connection, name, alias, sides, actor, gate)

    def evaluate(self, name: str, version: int, evaluation: Evaluation, *, actor: str) -> Recorded:
        """Record an evaluation of a version; raises EvaluationInvalid or AdapterNotFound."""
        check_evaluation(evaluation)
        with self._transactions.writing() as connection:
            return changes.evaluate(connection, name, version, evaluation, actor)

    def drop_alias(self, name: str, alias: str, *, actor: str) -> None:
        """Remove an alias; raises AdapterNotFound or AliasNotFound."""
        with self._transactions.writing() as connection:
            changes.drop_alias(connection, name, alias, actor)

    def rollback(self, name: str, alias: str, *, actor: str, to: int | None = None) -> Alias:
        """Point an alias at its previous target; a second call goes one further back.

        With `to` it goes back to that version. Removed versions are skipped, and a dropped alias
        comes back. Raises AdapterNotFound, AliasNotFound or NothingToRollBack.
        """
        with self._transactions.writing() as connection:
            return changes.roll_back(connection, name, alias, to, actor)

    def pin(self, name: str, version: int, *, actor: str) -> AdapterVersion:
        """Protect a version from removal and eviction; raises AdapterNotFound."""
        with self._transactions.writing() as connection:
            return changes.pin(connection, name, version, actor)

    def unpin(self, name: str, version: int, *, actor: str) -> AdapterVersion:
        """Raises AdapterNotFound."""
        with self._transactions.writing() as connection:
            return changes.unpin(connection, name, version, actor)

    def remove(self, name: str, version: int, *, actor: str) -> None:
        """Remove a version; its number is never reused, and its files stay in the store.

        Raises AdapterNotFound, or VersionInUse while it is pinned or an alias points at it.
        """
        with self._transactions.writing() as connection:
            changes.remove(connection, name, version, actor)

    def weigh(self, name: str, weight: float, *, actor: str) -> None:
        """Set a name's weight, which its versions have; raises WeightInvalid or AdapterNotFound."""
        weight = check_weight(weight)
        with self._transactions.writing() as connection:
            changes.weigh(connection, name, weight, actor)

    def set_gate(self, name: str, metric: str | None, *, actor: str) -> None:
        """Let every later move of an alias of a name need a better evaluation by a metric.

        None removes the gate. Raises EvaluationInvalid or AdapterNotFound.
        """
        if metric is not None:
            check_metric(metric)
        with self._transactions.writing() as connection:
            changes.set_gate(connection, name, metric, actor)

    def _describe(self) -> location.Owner:
        return location.Owner(
            self._transactions.id, location.address(self._transactions.engine.url)
        )

    def _find(self, reference: Reference) -> Meaning:
        known = self._current()
        if found := known.find(reference):
            return found
        with self._transactions.reading() as connection:
            shelf = self._look_up(connection, known, reference.name)
            weights = interpret(reference, *shelf)
            wanted = schema.versions.c.number.in_(weights)
            of_name = _of(schema.versions, reference.name)
            versions = select_versions(connection, *of_name, wanted)
        found = Meaning(reference, tuple(versions), weights)
        self._remember(known.meanings, reference, found)
        return found

    def _look_up(self, connection: Connection, known: Known, name: str) -> Shelf:
        aliases = select_aliases(connection, *_of(schema.targets, name))
        shelf = Shelf(select_digests(connection, name), aliases)
        if not shelf.digests and known.names is None:
            names = select_names(connection, limit=MOST_NAMES + 1)
            known.names = frozenset(names) if len(names) <= MOST_NAMES else None
        if shelf.digests or known.names is None:
            self._remember(known.shelves, name, shelf)
        return shelf

    def _remember(self, answers: dict[K, V], key: K, value: V) -> None:
        with self._lock:
            while len(answers) >= REMEMBERED:
                del answers[next(iter(answers))]
            answers[key] = value

    def _current(self) -> Known:
        """The cache for the present state of the catalog.

        A reader takes the cache before it reads, and stores its answer there: an answer that comes
        after a change lands in the discarded cache, never in the newer one.
        """
        with self._lock:
            mark = self._transactions.mark()
            if mark != self._mark:
                self._forgotten.update(dict.fromkeys(self._known.meanings))
                while len(self._forgotten) > REMEMBERED:
                    del self._forgotten[next(iter(self._forgotten))]
                self._mark, self._known = mark, Known()
            return self._known


def _of(table: Any, name: str | None) -> list[Any]:
    return [] if name is None else [table.c.name == name]

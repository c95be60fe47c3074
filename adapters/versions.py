"""One immutable version of an adapter, and how it is found in the catalog's tables.

Knows nothing of writing, of threads or of what is remembered.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, select

from adapters import schema
from adapters.errors import AdapterNotFound, AmbiguousDigest
from adapters.names import STABLE, DigestPrefix, Reference


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable version of an adapter, with the aliases that point at it now."""

    name: str
    version: int
    digest: str
    rank: int
    alpha: float
    base: str
    base_digest: str | None
    size_bytes: int
    created_at: datetime
    aliases: tuple[str, ...]
    provenance: dict[str, Any] | None = field(hash=False)

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document."""
        return asdict(self) | {
            "label": self.label,
            "created_at": self.created_at.isoformat(),
            "aliases": list(self.aliases),
        }


def find_version(connection: Connection, reference: Reference) -> AdapterVersion:
    found = select_versions(
        connection, schema.versions.c.name == reference.name, _selects(reference)
    )
    if not found:
        raise _explain_missing(connection, reference)
    if len(found) > 1:
        labels = ", ".join(version.label for version in found[:5])
        raise AmbiguousDigest(f"{reference} means {labels}", "give more digits of the digest")
    return found[0]


def _selects(reference: Reference) -> ColumnElement[bool]:
    table = schema.versions
    match reference.selector:
        case int(number):
            return table.c.number == number
        case DigestPrefix() as prefix:
            return table.c.digest.startswith(str(prefix), autoescape=True)
        case alias:
            pointer = schema.aliases
            named = and_(pointer.c.name == table.c.name, pointer.c.alias == (alias or STABLE))
            return table.c.number == select(pointer.c.version).where(named).scalar_subquery()


def select_versions(connection: Connection, *wanted: ColumnElement[bool]) -> list[AdapterVersion]:
    table, pointer = schema.versions, schema.aliases
    rows = connection.execute(
        select(table).where(*wanted).order_by(table.c.name, table.c.number)
    ).all()
    if not rows:
        return []
    names = {row.name for row in rows}
    query = select(pointer).order_by(pointer.c.alias)
    if len(names) == 1:
        query = query.where(pointer.c.name == rows[0].name)
    return _with_aliases(rows, connection.execute(query).all())


def _with_aliases(rows: Iterable[Row[Any]], pointers: Iterable[Row[Any]]) -> list[AdapterVersion]:
    aliases: dict[tuple[str, int], list[str]] = {}
    for pointer in pointers:
        aliases.setdefault((pointer.name, pointer.version), []).append(pointer.alias)
    return [
        AdapterVersion(
            name=row.name,
            version=row.number,
            digest=row.digest,
            rank=row.rank,
            alpha=row.alpha,
            base=row.base,
            base_digest=row.base_digest,
            size_bytes=row.size_bytes,
            created_at=as_utc(row.created_at),
            aliases=tuple(aliases.get((row.name, row.number), ())),
            provenance=row.provenance,
        )
        for row in rows
    ]


def _explain_missing(connection: Connection, reference: Reference) -> AdapterNotFound:
    known = select_versions(connection, schema.versions.c.name == reference.name)
    if not known:
        return AdapterNotFound(
            f"there is no adapter {reference.name!r}", "list those there are, or publish it first"
        )
    numbers = [str(version.version) for version in known]
    aliases = sorted(alias for version in known for alias in version.aliases)
    wanted = reference.selector or STABLE
    return AdapterNotFound(
        f"adapter {reference.name!r} has no {str(wanted)!r}",
        f"ask for one of {', '.join(aliases + numbers[-10:])}",
    )


def as_utc(moment: datetime) -> datetime:
    # SQLite forgets the time zone; what we write is UTC.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

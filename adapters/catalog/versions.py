"""The immutable versions of adapters: the meaning of references, and queries for versions.

Knows nothing of writing, of threads or of caching.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, select

from adapters.catalog import schema
from adapters.catalog.aliases import Alias, choose_side
from adapters.errors import AdapterNotFound, AliasIsSplit, AmbiguousDigest, WeightInvalid
from adapters.names import STABLE, DigestPrefix, Reference

DEFAULT_WEIGHT = 1.0
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
# The key of the provenance of a version that is asked in a form of its own (adapters/chat_form).
CHAT_FORM = "chat_form"


class VersionKey(NamedTuple):
    """Identifies a version for good: a label alone means other bytes in another catalog."""

    label: str
    digest: str


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable version of an adapter, with the facts that hold now: whether it is pinned, the
    aliases that point at it, and the weight and the gate of its name."""

    name: str
    version: int
    digest: str
    rank: int
    alpha: float
    base: str
    base_digest: str | None
    size_bytes: int
    created_at: datetime
    pinned: bool
    aliases: tuple[str, ...]
    weight: float
    gate: str | None
    provenance: dict[str, Any] | None = field(hash=False)

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def key(self) -> VersionKey:
        return VersionKey(self.label, self.digest)

    @property
    def chat_form(self) -> dict[str, Any] | None:
        """What publishing recorded of its own chat form; None if it is asked in the base's."""
        form = (self.provenance or {}).get(CHAT_FORM)
        return form if isinstance(form, dict) else None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document."""
        return asdict(self) | {
            "label": self.label,
            "created_at": self.created_at.isoformat(),
            "aliases": list(self.aliases),
        }


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a reference: one version, or the sides of a split in ascending order."""

    reference: Reference
    versions: tuple[AdapterVersion, ...]
    weights: Mapping[int, int]  # by number

    def choose(self, key: str | None) -> AdapterVersion:
        """The version for this key: always the same side of a split; any side without a key."""
        if len(self.versions) == 1:
            return self.versions[0]
        weights = [self.weights[version.version] for version in self.versions]
        return self.versions[choose_side(self._alias, weights, key)]

    def only(self) -> AdapterVersion:
        """The one version; raises AliasIsSplit."""
        if len(self.versions) == 1:
            return self.versions[0]
        said = ", ".join(f"{each.label} ({self.weights[each.version]})" for each in self.versions)
        raise AliasIsSplit(f"{self._alias} is split between {said}", "name one of these versions")

    @property
    def _alias(self) -> str:
        return f"{self.reference.name}@{self.reference.selector or STABLE}"


@dataclass(frozen=True, slots=True)
class Published:
    """The meaning of a bare name in a list: its version, or the heaviest side of a split."""

    name: str
    version: int
    digest: str
    created_at: datetime
    split: dict[int, int] | None  # version -> weight


def interpret(
    reference: Reference, digests: Mapping[int, str], aliases: Sequence[Alias]
) -> dict[int, int]:
    """The versions that a reference means, each with its weight.

    `digests` are those of all versions of the name, by number; `aliases` are all of the name.
    Raises AdapterNotFound or AmbiguousDigest.
    """
    match reference.selector:
        case int(number):
            weights = {number: 1} if number in digests else {}
        case DigestPrefix() as prefix:
            matching = [each for each in digests if digests[each].startswith(str(prefix))]
            if len(matching) > 1:
                labels = ", ".join(f"{reference.name}@{number}" for number in matching[:5])
                raise AmbiguousDigest(
                    f"{reference} means {labels}", "give more digits of the digest"
                )
            weights = dict.fromkeys(matching, 1)
        case alias:
            named = (each for each in aliases if each.alias == (alias or STABLE))
            weights = {target.version: target.weight for each in named for target in each.targets}
    if not weights:
        raise explain_missing(reference, list(digests), aliases)
    return weights


def select_digests(connection: Connection, name: str) -> dict[int, str]:
    """The digests of a name's versions, by number in ascending order."""
    table = schema.versions
    query = select(table.c.number, table.c.digest).where(table.c.name == name)
    rows = connection.execute(query.order_by(table.c.number)).all()
    return {row.number: row.digest for row in rows}


def select_names(
    connection: Connection, *, after: str | None = None, limit: int | None = None
) -> list[str]:
    """The names that have a version, in the database's order, from the one after `after` on."""
    column = schema.versions.c.name
    query = select(column).distinct().order_by(column).limit(limit)
    return list(connection.scalars(query if after is None else query.where(column > after)))


def select_versions(connection: Connection, *wanted: ColumnElement[bool]) -> list[AdapterVersion]:
    """Versions by name and number, each with its aliases."""
    table, pin, target = schema.versions, schema.pins, schema.targets
    same = and_(pin.c.name == table.c.name, pin.c.version == table.c.number)
    pinned = pin.c.version.is_not(None).label("pinned")
    query = select(table, pinned, schema.adapters.c.weight, schema.adapters.c.gate).join(
        schema.adapters
    )
    query = query.outerjoin(pin, same).where(*wanted).order_by(table.c.name, table.c.number)
    rows = connection.execute(query).all()
    if not rows:
        return []
    first, last = rows[0].name, rows[-1].name
    pointing = select(target).where(target.c.name.between(first, last)).order_by(target.c.alias)
    return _with_aliases(rows, connection.execute(pointing).all())


def select_labels(connection: Connection) -> set[str]:
    table = schema.versions
    rows = connection.execute(select(table.c.name, table.c.number))
    return {f"{row.name}@{row.number}" for row in rows}


def select_published(connection: Connection) -> list[Published]:
    """Every name with a `stable` alias, in order, with few columns: lists are read often."""
    table, target = schema.versions, schema.targets
    same = and_(table.c.name == target.c.name, table.c.number == target.c.version)
    query = select(*target.c, table.c.digest, table.c.created_at).join(table, same)
    query = query.where(target.c.alias == STABLE).order_by(target.c.name, target.c.version)
    found = []
    for name, group in groupby(connection.execute(query), key=lambda row: row.name):
        sides = list(group)
        heaviest = max(sides, key=lambda row: row.weight)
        split = {row.version: row.weight for row in sides} if len(sides) > 1 else None
        moment = as_utc(heaviest.created_at)
        found.append(Published(name, heaviest.version, heaviest.digest, moment, split))
    return found


def _with_aliases(rows: Iterable[Row[Any]], targets: Iterable[Row[Any]]) -> list[AdapterVersion]:
    aliases: dict[tuple[str, int], list[str]] = {}
    for target in targets:
        aliases.setdefault((target.name, target.version), []).append(target.alias)
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
            pinned=bool(row.pinned),
            aliases=tuple(aliases.get((row.name, row.number), ())),
            weight=row.weight,
            gate=row.gate,
            provenance=row.provenance,
        )
        for row in rows
    ]


def check_weight(weight: float) -> float:
    """The weight of a name, if it is one; raises WeightInvalid."""
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:  # nor NaN
        raise WeightInvalid(
            f"the weight {weight:g} is out of range",
            f"give a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, such as 2",
        )
    return float(weight)


def explain_missing(
    reference: Reference, numbers: Sequence[int] = (), aliases: Sequence[Alias] = ()
) -> AdapterNotFound:
    """The error for a reference without a version, given the versions and aliases of its name."""
    if not numbers:
        return AdapterNotFound(
            f"there is no adapter {reference.name!r}", "list those there are, or publish it first"
        )
    known = [*sorted(each.alias for each in aliases), *map(str, numbers[-10:])]
    wanted = reference.selector or STABLE
    return AdapterNotFound(
        f"adapter {reference.name!r} has no {str(wanted)!r}", f"ask for one of {', '.join(known)}"
    )


def as_utc(moment: datetime) -> datetime:
    # SQLite does not store the time zone; we always write UTC.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

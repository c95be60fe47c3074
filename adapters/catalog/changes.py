"""The changes of a catalog: each runs in its caller's transaction and records an event.

Knows nothing of connections, threads or files.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, insert, select, update

from adapters.catalog import evaluations, history, schema
from adapters.catalog.aliases import Alias, Weights, select_aliases
from adapters.catalog.evaluations import Evaluation, Gate, Recorded
from adapters.catalog.versions import (
    DEFAULT_WEIGHT,
    AdapterVersion,
    explain_missing,
    select_digests,
    select_versions,
)
from adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    GateRefused,
    NothingToRollBack,
    OtherBase,
    VersionInUse,
)
from adapters.names import Reference


def publish(
    connection: Connection,
    name: str,
    values: Mapping[str, Any],
    aliases: Sequence[str],
    actor: str,
    any_base: bool = False,
) -> AdapterVersion:
    """Raises OtherBase."""
    number = _ensure_version(connection, name, values, actor, any_base)
    for alias in dict.fromkeys(aliases):
        point(connection, name, alias, {number: 1}, actor)
    return find_version(connection, name, number)


def point(
    connection: Connection,
    name: str,
    alias: str,
    weights: Weights,
    actor: str,
    gate: Gate | None = None,
) -> Alias:
    """Let an alias point at some versions; raises AdapterNotFound or GateRefused."""
    for version in weights:
        find_version(connection, name, version)
    passed = _pass(connection, name, alias, weights, gate) if gate else {}
    return _move(connection, name, alias, weights, actor, history.ALIAS_MOVED, passed)


def _pass(
    connection: Connection, name: str, alias: str, weights: Weights, gate: Gate
) -> dict[str, Any]:
    """What the event says of the gate; raises GateRefused unless it is passed or forced."""
    found = evaluations.select_evaluations(connection, schema.evaluations.c.name == name)
    by_version = {number: each for (_, number), each in found.items()}
    targets = _weights(connection, name, alias)
    try:
        for version in weights:
            evaluations.check_gate(name, version, gate.metric, by_version, targets)
    except GateRefused as refused:
        if not gate.forced:
            raise
        return {"gate": gate.metric, "forced": True, "reason": refused.message}
    return {"gate": gate.metric}


def evaluate(
    connection: Connection, name: str, number: int, found: Evaluation, actor: str
) -> Recorded:
    """Record an evaluation of a version; raises AdapterNotFound."""
    find_version(connection, name, number)
    return evaluations.record(connection, name, number, found, actor)


def drop_alias(connection: Connection, name: str, alias: str, actor: str) -> None:
    """Raises AliasNotFound."""
    if not _weights(connection, name, alias):
        raise _no_alias(connection, name, alias)
    _move(connection, name, alias, {}, actor, history.ALIAS_DROPPED)


def roll_back(connection: Connection, name: str, alias: str, to: int | None, actor: str) -> Alias:
    """Raises AliasNotFound or NothingToRollBack."""
    now = _weights(connection, name, alias)
    events = history.select_events(connection, schema.events.c.name == name)
    way = history.earlier_targets(events, alias)
    if not now and not way:
        raise _no_alias(connection, name, alias)
    numbers = schema.versions.c.number
    alive = set(connection.scalars(select(numbers).where(schema.versions.c.name == name)))
    for weights in way:
        wanted = to is None or weights.keys() == {to}
        if wanted and weights != now and alive.issuperset(weights):
            return _move(connection, name, alias, weights, actor, history.ALIAS_ROLLED_BACK)
    said = "never pointed at another version" if to is None else f"has no way back to version {to}"
    raise NothingToRollBack(
        f"the alias {name}@{alias} {said} that is still there",
        f"point it where you want it: lorry adapters alias {name} {alias} VERSION",
    )


def pin(connection: Connection, name: str, number: int, actor: str) -> AdapterVersion:
    """Raises AdapterNotFound."""
    version = find_version(connection, name, number)
    if not version.pinned:
        connection.execute(insert(schema.pins).values(name=name, version=number))
        history.record(connection, actor, history.PINNED, name, {"version": number})
    return find_version(connection, name, number)


def unpin(connection: Connection, name: str, number: int, actor: str) -> AdapterVersion:
    """Raises AdapterNotFound."""
    version = find_version(connection, name, number)
    if version.pinned:
        connection.execute(delete(schema.pins).where(_is(schema.pins, name, version=number)))
        history.record(connection, actor, history.UNPINNED, name, {"version": number})
    return find_version(connection, name, number)


def remove(connection: Connection, name: str, number: int, actor: str) -> None:
    """Raises AdapterNotFound or VersionInUse."""
    version = find_version(connection, name, number)
    if version.aliases:
        raise VersionInUse(
            f"{version.label} is in use: {', '.join(version.aliases)} points at it",
            "point these aliases at other versions, or drop them, first",
        )
    if version.pinned:
        raise VersionInUse(f"{version.label} is pinned", "unpin it first")
    judged = _is(schema.evaluations, name, version=number)
    connection.execute(delete(schema.evaluations).where(judged))
    connection.execute(delete(schema.versions).where(_is(schema.versions, name, number=number)))
    detail = {"version": number, "digest": version.digest}
    history.record(connection, actor, history.REMOVED, name, detail)


def weigh(connection: Connection, name: str, weight: float, actor: str) -> None:
    """Set a name's weight; raises AdapterNotFound."""
    table = schema.adapters
    query = select(table.c.weight).where(_is(table, name))
    before = connection.scalar(query) if select_digests(connection, name) else None
    if before is None:
        raise explain_missing(Reference(name))
    if before != weight:
        connection.execute(update(table).where(_is(table, name)).values(weight=weight))
        detail = {"from": before, "to": weight}
        history.record(connection, actor, history.WEIGHT_CHANGED, name, detail)


def find_version(connection: Connection, name: str, number: int) -> AdapterVersion:
    """Raises AdapterNotFound."""
    found = select_versions(connection, _is(schema.versions, name, number=number))
    if not found:
        numbers = list(select_digests(connection, name))
        aliases = select_aliases(connection, _is(schema.targets, name))
        raise explain_missing(Reference(name, number), numbers, aliases)
    return found[0]


def _ensure_version(
    connection: Connection, name: str, values: Mapping[str, Any], actor: str, any_base: bool
) -> int:
    table, now = schema.versions, datetime.now(UTC)
    same = _is(table, name, digest=values["digest"])
    existing = connection.execute(select(table.c.number, table.c.base_digest).where(same)).first()
    if existing is not None:
        if not any_base:
            label = f"{name}@{existing.number}"
            check_same_base(label, existing.base_digest, values["base_digest"])
        return int(existing.number)
    number = _next_number(connection, name, now)
    connection.execute(insert(table).values(name=name, number=number, created_at=now, **values))
    detail = {"version": number, "digest": values["digest"]}
    history.record(connection, actor, history.PUBLISHED, name, detail)
    return number


def check_same_base(label: str, known: str | None, given: str | None) -> None:
    """Raises OtherBase."""
    if known and given and known != given:
        raise OtherBase(
            f"these bytes are {label} already, which was published for another base",
            f"if that was wrong, remove {label} and publish them again; else give them another"
            " name",
        )


def _next_number(connection: Connection, name: str, now: datetime) -> int:
    table = schema.adapters
    last = connection.scalar(select(table.c.last_number).where(_is(table, name)))
    if last is None:
        first = {"name": name, "created_at": now, "last_number": 1, "weight": DEFAULT_WEIGHT}
        connection.execute(insert(table).values(first))
        return 1
    connection.execute(update(table).where(_is(table, name)).values(last_number=last + 1))
    return int(last) + 1


def _move(
    connection: Connection,
    name: str,
    alias: str,
    weights: Weights,
    actor: str,
    action: str,
    passed: Mapping[str, Any] | None = None,
) -> Alias:
    table = schema.targets
    before = _weights(connection, name, alias)
    if before != weights:
        connection.execute(delete(table).where(_is(table, name, alias=alias)))
        rows = [
            {"name": name, "alias": alias, "version": version, "weight": weight}
            for version, weight in weights.items()
        ]
        if rows:
            connection.execute(insert(table), rows)
        said = {"from": history.write_targets(before), "to": history.write_targets(weights)}
        history.record(connection, actor, action, name, {"alias": alias} | said | (passed or {}))
    found = select_aliases(connection, _is(table, name, alias=alias))
    return found[0] if found else Alias(name, alias, ())


def _weights(connection: Connection, name: str, alias: str) -> dict[int, int]:
    found = select_aliases(connection, _is(schema.targets, name, alias=alias))
    return {target.version: target.weight for each in found for target in each.targets}


def _is(table: Table, name: str, **values: Any) -> ColumnElement[bool]:
    return and_(
        table.c.name == name, *(table.c[column] == value for column, value in values.items())
    )


def _no_alias(connection: Connection, name: str, alias: str) -> AdapterNotFound | AliasNotFound:
    table = schema.targets
    others = sorted({each.alias for each in select_aliases(connection, table.c.name == name)})
    if connection.scalar(select(schema.adapters.c.name).where(_is(schema.adapters, name))) is None:
        return AdapterNotFound(f"there is no adapter {name!r}", "list those there are")
    return AliasNotFound(
        f"adapter {name!r} has no alias {alias!r}",
        f"its aliases are {', '.join(others)}" if others else "it has no alias at all: give it one",
    )

"""The history of a catalog: one event for every change.

Only the history knows what an alias pointed at before; a rollback reads it here.
"""

import getpass
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, insert, select

from adapters.catalog import schema
from adapters.catalog.aliases import Weights
from adapters.catalog.versions import as_utc

PUBLISHED = "published"
ALIAS_MOVED = "alias_moved"
ALIAS_ROLLED_BACK = "alias_rolled_back"
ALIAS_DROPPED = "alias_dropped"
PINNED = "pinned"
UNPINNED = "unpinned"
REMOVED = "removed"
WEIGHT_CHANGED = "weight_changed"
EVALUATED = "evaluated"
GATE_CHANGED = "gate_changed"
KEY_CREATED = "key_created"
KEY_ROTATED = "key_rotated"
KEY_BLOCKED = "key_blocked"
KEY_UNBLOCKED = "key_unblocked"
KEY_REVOKED = "key_revoked"

ALIAS_ACTIONS = (ALIAS_MOVED, ALIAS_ROLLED_BACK, ALIAS_DROPPED)


# Of what a change is: names of adapters and of keys are two kinds.
Subject = Literal["adapter", "key"]
Mark = tuple[int, datetime]


@dataclass(frozen=True, slots=True)
class Event:
    """One recorded change."""

    happened_at: datetime
    actor: str
    action: str
    name: str
    detail: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document."""
        return {
            "happened_at": self.happened_at.isoformat(),
            "actor": self.actor,
            "action": self.action,
            "name": self.name,
            **self.detail,
        }


def current_user() -> str:
    """The actor of a change made on this machine: the operating system's name of the user."""
    try:
        return getpass.getuser().encode(errors="replace").decode()
    except (OSError, KeyError):
        return "unknown"


def record(
    connection: Connection,
    actor: str,
    action: str,
    name: str,
    detail: Mapping[str, Any],
    subject: Subject = "adapter",
) -> None:
    connection.execute(
        insert(schema.events).values(
            happened_at=datetime.now(UTC),
            actor=actor,
            action=action,
            subject=subject,
            name=name,
            detail=detail,
        )
    )


def select_events(
    connection: Connection,
    *wanted: ColumnElement[bool],
    limit: int | None = None,
    subject: Subject = "adapter",
) -> list[Event]:
    """Events, oldest first; with `limit`, only the newest ones."""
    table = schema.events
    wanted = (table.c.subject == subject, *wanted)
    query = select(table).where(*wanted).order_by(table.c.id.desc()).limit(limit)
    rows = connection.execute(query).all()
    return [
        Event(as_utc(row.happened_at), row.actor, row.action, row.name, row.detail)
        for row in reversed(rows)
    ]


def read_newest(connection: Connection) -> Mark | None:
    """Identifies the newest event, and so the state of the catalog; None before the first."""
    table = schema.events
    query = select(table.c.id, table.c.happened_at).order_by(table.c.id.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else (row.id, as_utc(row.happened_at))


def has_event(connection: Connection, mark: Mark) -> bool:
    number, moment = mark
    query = select(schema.events.c.happened_at).where(schema.events.c.id == number)
    found = connection.scalar(query)
    return found is not None and as_utc(found) == moment


def write_targets(weights: Weights) -> int | dict[str, int] | None:
    """Targets of an alias as an event stores them: None, a version, or weights by version."""
    if len(weights) > 1:
        return {str(version): weight for version, weight in weights.items()}
    return next(iter(weights), None)


def _read_targets(said: int | dict[str, int] | None) -> dict[int, int]:
    if isinstance(said, dict):
        return {int(version): weight for version, weight in said.items()}
    return {} if said is None else {said: 1}


def earlier_targets(events: Iterable[Event], alias: str) -> list[dict[int, int]]:
    """The earlier targets of an alias, latest first, from the events of its name.

    A move adds one; a rollback removes the moves that led away from where it went.
    """
    way: list[dict[int, int]] = []
    for event in events:
        if event.action not in ALIAS_ACTIONS or event.detail["alias"] != alias:
            continue
        if event.action == ALIAS_ROLLED_BACK:
            reached = _read_targets(event.detail["to"])
            while way and way.pop() != reached:
                pass
        elif before := _read_targets(event.detail["from"]):
            way.append(before)
    return way[::-1]

"""The API keys of a catalog: made, rotated, blocked and revoked, each change with its event.

A secret is in no table and no event: only its digest is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, insert, or_, select, update

from adapters.catalog import history, schema
from adapters.catalog.history import Event
from adapters.catalog.transactions import Transactions
from adapters.catalog.versions import as_utc
from adapters.errors import KeyExists, KeyInvalid, KeyIsRevoked, KeyNotFound, quote
from adapters.keys.record import Budget, Key, RateLimits, check_key
from adapters.keys.ring import Held, Keyring
from adapters.keys.secret import digest_of, make_secret, prefix_of

MAX_KEYS = 10_000
LONGEST_OVERLAP = timedelta(days=30)


class Keys:
    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._ring: tuple[object, Keyring] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether it is known that the catalog can't be read now."""
        return self._transactions.is_lost

    def remembered(self) -> Keyring | None:
        """All keys, if none can have changed since they were read; never queries a database."""
        ring = self._ring
        return ring[1] if ring is not None and ring[0] == self._transactions.mark() else None

    def ring(self) -> Keyring:
        """All keys, from memory where that is fresh. Raises CatalogError."""
        # Before the read: a change that comes during it is read again.
        mark = self._transactions.mark()
        ring = self._ring
        if ring is not None and ring[0] == mark:
            return ring[1]
        with self._transactions.reading() as connection:
            found = _select_ring(connection)
        self._ring = mark, found
        return found

    def all(self) -> list[Key]:
        """All keys, revoked ones too, by name."""
        return sorted(self.ring(), key=lambda key: key.name)

    def find(self, name: str) -> Key:
        """Raises KeyNotFound."""
        with self._transactions.reading() as connection:
            return _find(connection, name)

    def list_events(self, name: str | None = None, limit: int | None = None) -> list[Event]:
        """Every change of keys so far, or the last `limit`, oldest first."""
        wanted = [] if name is None else [schema.events.c.name == name]
        with self._transactions.reading() as connection:
            return history.select_events(connection, *wanted, limit=limit, subject="key")

    def create(self, key: Key, *, actor: str) -> tuple[Key, str]:
        """Keep a new key; returns it with its id and prefix, and its secret, this once.

        Raises KeyInvalid or KeyExists.
        """
        secret, now = make_secret(), datetime.now(UTC)
        key = check_key(replace(key, id=uuid4().hex, prefix=prefix_of(secret), created=now))
        if key.expires is not None and key.expires <= now:
            raise KeyInvalid(
                f"the key {key.name} would have expired already", "let it expire later, or never"
            )
        table = schema.keys
        with self._transactions.writing() as connection:
            if connection.scalar(select(table.c.id).where(table.c.name == key.name)) is not None:
                raise KeyExists(
                    f"there is, or was, a key {key.name}",
                    "names of keys are used once: take another, or rotate that key's secret",
                )
            if len(connection.execute(select(table.c.id)).all()) >= MAX_KEYS:
                raise KeyInvalid(
                    f"there are {MAX_KEYS} keys already", "give callers that belong together one"
                )
            connection.execute(insert(table).values(_as_row(key)))
            _add_secret(connection, key, secret, now)
            detail = {k: v for k, v in key.as_json().items() if k not in ("name", "status")}
            _record(connection, actor, history.KEY_CREATED, key.name, detail)
        return key, secret

    def rotate(self, name: str, *, overlap: timedelta, actor: str) -> tuple[Key, str]:
        """Give a key a new secret; the earlier ones end after `overlap`, at once if it is 0.

        Raises KeyInvalid, KeyNotFound or KeyIsRevoked.
        """
        if not timedelta() <= overlap <= LONGEST_OVERLAP:
            raise KeyInvalid(
                f"an overlap of {overlap} is not possible",
                f"it is at least 0 and at most {LONGEST_OVERLAP.days} days",
            )
        secret, now = make_secret(), datetime.now(UTC)
        table = schema.key_secrets
        with self._changing(name) as (connection, key):
            earlier = (
                table.c.key_id == key.id,
                or_(table.c.expires_at.is_(None), table.c.expires_at > now + overlap),
            )
            connection.execute(update(table).where(*earlier).values(expires_at=now + overlap))
            _add_secret(connection, key, secret, now)
            detail = {"prefix": prefix_of(secret), "overlap_seconds": overlap.total_seconds()}
            _record(connection, actor, history.KEY_ROTATED, name, detail)
        return replace(key, prefix=prefix_of(secret)), secret

    def block(self, name: str, *, actor: str) -> Key:
        """Put a key out of force until it is unblocked; raises KeyNotFound or KeyIsRevoked."""
        return self._set(name, actor, history.KEY_BLOCKED, blocked=True)

    def unblock(self, name: str, *, actor: str) -> Key:
        """Raises KeyNotFound or KeyIsRevoked."""
        return self._set(name, actor, history.KEY_UNBLOCKED, blocked=False)

    def revoke(self, name: str, *, actor: str) -> Key:
        """Put a key out of force for good; raises KeyNotFound or KeyIsRevoked."""
        return self._set(name, actor, history.KEY_REVOKED, revoked_at=datetime.now(UTC))

    def _set(self, name: str, actor: str, action: str, **values: Any) -> Key:
        table = schema.keys
        with self._changing(name) as (connection, key):
            connection.execute(update(table).where(table.c.id == key.id).values(values))
            after = _find(connection, name)
            if after != key:
                _record(connection, actor, action, name, {"prefix": key.prefix})
        return after

    @contextmanager
    def _changing(self, name: str) -> Iterator[tuple[Connection, Key]]:
        with self._transactions.writing() as connection:
            key = _find(connection, name)
            if key.revoked is not None:
                raise KeyIsRevoked(f"the key {name} is revoked", "create another one")
            yield connection, key


def _record(
    connection: Connection, actor: str, action: str, name: str, detail: dict[str, Any]
) -> None:
    history.record(connection, actor, action, name, detail, subject="key")


def _add_secret(connection: Connection, key: Key, secret: str, now: datetime) -> None:
    connection.execute(
        insert(schema.key_secrets).values(
            digest=digest_of(secret), key_id=key.id, prefix=prefix_of(secret), created_at=now
        )
    )


def _find(connection: Connection, name: str) -> Key:
    for held in _select_ring(connection, name).secrets.values():
        return held.key
    raise KeyNotFound(f"there is no key {quote(name)}", "list the keys to see those there are")


def _select_ring(connection: Connection, name: str | None = None) -> Keyring:
    keys, secrets = schema.keys, schema.key_secrets
    wanted = [] if name is None else [keys.c.name == name]
    rows = connection.execute(select(keys).where(*wanted)).all()
    ids = [secrets.c.key_id.in_([row.id for row in rows])] if name is not None else []
    held = connection.execute(
        select(secrets).where(*ids).order_by(secrets.c.created_at, secrets.c.digest)
    ).all()
    newest = {secret.key_id: secret.prefix for secret in held}  # the last one of each
    known = {row.id: _as_key(row, newest[row.id]) for row in rows}
    return Keyring(
        {each.digest: Held(known[each.key_id], _moment(each.expires_at)) for each in held}
    )


def _moment(value: datetime | None) -> datetime | None:
    return None if value is None else as_utc(value)


def _as_key(row: Any, prefix: str) -> Key:
    budget = None
    if row.budget_tokens is not None:
        budget = Budget(row.budget_tokens, row.budget_period)
    return Key(
        id=row.id,
        name=row.name,
        prefix=prefix,
        scopes=frozenset(row.scopes),
        adapters=tuple(row.adapters),
        base=row.base,
        weight=row.weight,
        created=as_utc(row.created_at),
        expires=_moment(row.expires_at),
        blocked=row.blocked,
        revoked=_moment(row.revoked_at),
        limits=RateLimits(row.requests_per_minute, row.tokens_per_minute, row.in_flight, budget),
    )


def _as_row(key: Key) -> dict[str, Any]:
    limits, budget = key.limits, key.limits.budget
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "adapters": list(key.adapters),
        "base": key.base,
        "weight": key.weight,
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "in_flight": limits.in_flight,
        "budget_tokens": budget.tokens if budget else None,
        "budget_period": budget.period if budget else None,
        "created_at": key.created,
        "expires_at": key.expires,
        "blocked": key.blocked,
        "revoked_at": key.revoked,
    }

"""Limits on the use of adapters: of all callers together, or of one key.

A key's limits on all that it calls are the key's own. Knows nothing of how calls are held to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, delete, insert, select

from adapters.catalog import history, schema
from adapters.catalog.transactions import Transactions
from adapters.errors import KeyNotFound, LimitNotFound, no_such_adapter, quote
from adapters.keys import Budget, RateLimits
from adapters.keys.record import check_limits

BASE = "base"  # in place of an adapter: calls to the base


class RuleId(NamedTuple):
    """The key and the adapter that limits apply to; an empty text means all of them."""

    key: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Rule:
    id: RuleId
    limits: RateLimits

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document; `key` is null for all callers together."""
        key, adapter = self.id
        limits: dict[str, Any] = msgspec.to_builtins(self.limits)
        return {"adapter": adapter, "key": key or None} | limits


class Limits:
    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._known: tuple[object, Mapping[RuleId, RateLimits]] | None = None

    def remembered(self) -> Mapping[RuleId, RateLimits] | None:
        """All rules, if none can have changed since they were read; never queries a database."""
        known = self._known
        return known[1] if known is not None and known[0] == self._transactions.mark() else None

    def all(self) -> Mapping[RuleId, RateLimits]:
        """Every rule, by its id, from memory where that is fresh. Raises CatalogError."""
        # Before the read: a change that comes during it is read again.
        mark, known = self._transactions.mark(), self._known
        if known is not None and known[0] == mark:
            return known[1]
        with self._transactions.reading() as connection:
            found = _select_rules(connection)
        self._known = mark, found
        return found

    def list(self) -> list[Rule]:
        """Every rule, by adapter and key. Raises CatalogError."""
        found = (Rule(*each) for each in self.all().items())
        return sorted(found, key=lambda rule: (rule.id.adapter, rule.id.key))

    def put(self, id_: RuleId, limits: RateLimits, *, actor: str) -> Rule:
        """Set what an adapter's calls may use, of one key or of all callers together, in place of
        what was set before. Raises KeyInvalid, KeyNotFound or AdapterNotFound."""
        rule = Rule(id_, check_limits(limits))
        budget = limits.budget
        with self._transactions.writing() as connection:
            _check_names(connection, id_)
            connection.execute(delete(schema.limits).where(*_is(id_)))
            connection.execute(
                insert(schema.limits).values(
                    key=id_.key,
                    adapter=id_.adapter,
                    requests_per_minute=limits.requests_per_minute,
                    tokens_per_minute=limits.tokens_per_minute,
                    in_flight=limits.in_flight,
                    budget_tokens=budget.tokens if budget else None,
                    budget_period=budget.period if budget else None,
                )
            )
            detail = {k: v for k, v in rule.as_json().items() if k != "adapter"}
            history.record(connection, actor, history.LIMITS_SET, id_.adapter, detail)
        return rule

    def remove(self, id_: RuleId, *, actor: str) -> None:
        """Raises LimitNotFound."""
        with self._transactions.writing() as connection:
            removed = connection.execute(delete(schema.limits).where(*_is(id_))).rowcount
            if not removed:
                whose = f"the key {quote(id_.key)} on {id_.adapter}" if id_.key else id_.adapter
                raise LimitNotFound(
                    f"there are no limits of {whose}", "list the limits to see those there are"
                )
            detail = {"key": id_.key or None}
            history.record(connection, actor, history.LIMITS_REMOVED, id_.adapter, detail)


def period_at(budget: Budget, moment: datetime) -> tuple[datetime, datetime]:
    """When the budget's period of a moment begins, and when the next one does."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if budget.period == "day":
        return day, datetime.fromordinal(day.toordinal() + 1).replace(tzinfo=UTC)
    first = day.replace(day=1)
    year, month = divmod(first.year * 12 + first.month, 12)
    return first, first.replace(year=year, month=month + 1)


def _check_names(connection: Connection, id_: RuleId) -> None:
    adapters, keys = schema.adapters.c.name, schema.keys.c.name
    is_there = connection.scalar(select(adapters).where(adapters == id_.adapter))
    if is_there is None and id_.adapter != BASE:
        raise no_such_adapter(id_.adapter)
    if id_.key and connection.scalar(select(keys).where(keys == id_.key)) is None:
        raise KeyNotFound(
            f"there is no key {quote(id_.key)}", "list the keys to see those there are"
        )


def _select_rules(connection: Connection) -> dict[RuleId, RateLimits]:
    found = {}
    for row in connection.execute(select(schema.limits)):
        budget = None
        if row.budget_tokens is not None:
            budget = Budget(row.budget_tokens, row.budget_period)
        found[RuleId(row.key, row.adapter)] = RateLimits(
            row.requests_per_minute, row.tokens_per_minute, row.in_flight, budget
        )
    return found


def _is(id_: RuleId) -> tuple[Any, Any]:
    return schema.limits.c.key == id_.key, schema.limits.c.adapter == id_.adapter

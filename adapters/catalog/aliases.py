"""What an alias points at: one version, or several that share its requests by weight.

Knows how a side is chosen and how the tables keep it; nothing of history or of files.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from adapters.catalog import schema
from adapters.errors import SplitInvalid

MAX_WEIGHT = 1_000_000
MAX_SIDES = 100

Weights = Mapping[int, int]  # version -> weight


@dataclass(frozen=True, slots=True)
class Target:
    """One version that an alias points at, and its share relative to the others."""

    version: int
    weight: int


@dataclass(frozen=True, slots=True)
class Alias:
    """An alias with its targets in ascending version order; more than one make it a split."""

    name: str
    alias: str
    targets: tuple[Target, ...]

    @property
    def label(self) -> str:
        return f"{self.name}@{self.alias}"

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document."""
        return asdict(self) | {"targets": [asdict(target) for target in self.targets]}


def choose_side(alias: str, weights: Sequence[int], key: str | None) -> int:
    """Which of the weights a key falls on, always the same; at random for no key.

    `alias` is NAME@ALIAS: a user on the small side of one split is not on that of all others.
    Sides keep their order, so changed weights (of the same sum) move only those who must move.
    """
    if key is None:
        point = random.randrange(sum(weights))
    else:
        # A key comes from a caller, and JSON may smuggle in what UTF-8 can't write.
        text = f"{alias}:{key}".encode("utf-8", "surrogatepass")
        point = int.from_bytes(sha256(text).digest()[:8], "big") % sum(weights)
    for side, weight in enumerate(weights):
        if point < weight:
            return side
        point -= weight
    raise AssertionError("unreachable")


def check_split(weights: Weights) -> dict[int, int]:
    """The sides that get any requests, by version; raises SplitInvalid."""
    for version, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int):
            raise _invalid(f"the weight of version {version} is not a whole number")
        if not 0 <= weight <= MAX_WEIGHT:
            raise _invalid(f"the weight {weight} of version {version} is out of range")
    sides = {version: weight for version, weight in sorted(weights.items()) if weight}
    if not sides:
        raise _invalid("a split needs a version with a weight above 0")
    if len(sides) > MAX_SIDES:
        raise _invalid(f"a split has at most {MAX_SIDES} sides, not {len(sides)}")
    # Of one side the weight means nothing: it is a plain alias.
    return dict.fromkeys(sides, 1) if len(sides) == 1 else sides


def _invalid(said: str) -> SplitInvalid:
    return SplitInvalid(said, f"give each version a weight of 0 to {MAX_WEIGHT}, such as 1=90 2=10")


def select_aliases(connection: Connection, *wanted: ColumnElement[bool]) -> list[Alias]:
    table = schema.targets
    query = select(table).where(*wanted).order_by(table.c.name, table.c.alias, table.c.version)
    rows = connection.execute(query).all()
    return [
        Alias(name, alias, tuple(Target(row.version, row.weight) for row in group))
        for (name, alias), group in groupby(rows, key=lambda row: (row.name, row.alias))
    ]

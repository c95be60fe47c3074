"""Aliases: each points at one version, or at several that split its requests by weight.

Knows how a side is chosen and how the tables store it; nothing of history or of files.
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
    """One version that an alias points at, and its weight relative to the others."""

    version: int
    weight: int


@dataclass(frozen=True, slots=True)
class Alias:
    """An alias with its targets in ascending order of version; more than one make it a split."""

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
    """The index of the side that a key gets, always the same; without a key, a random one.

    `alias` is NAME@ALIAS: it is hashed too, so that a key on the small side of one split is not on
    the small side of every other. Sides keep their order, so new weights of the same sum move as
    few keys as possible.
    """
    if key is None:
        point = random.randrange(sum(weights))
    else:
        # A caller's key may hold a lone surrogate, which JSON can write and UTF-8 can't.
        text = f"{alias}:{key}".encode("utf-8", "surrogatepass")
        point = int.from_bytes(sha256(text).digest()[:8], "big") % sum(weights)
    for side, weight in enumerate(weights):
        if point < weight:
            return side
        point -= weight
    raise AssertionError("unreachable")


def check_split(weights: Weights) -> dict[int, int]:
    """The sides with a weight above 0, by version; raises SplitInvalid."""
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
    # A single side is a plain alias: its weight means nothing.
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

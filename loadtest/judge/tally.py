"""What a server should have counted of the calls that were made, as bounds.

The two sides can't know the same of every call: one that its caller left may have ended before the
server saw that, and one that got no answer may never have reached it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from loadtest.records import Record

Key = tuple[str, str]  # adapter, version: as the server's series are labelled
UNRESOLVED: Key = ("_unresolved", "")  # calls that named no model
_BASE = "base"

# unclear: no answer, or one that broke; the server may call it anything.
Kind = Literal["ok", "hung_up", "client_error", "rejected", "error", "unclear"]
Which = Literal["prompt", "output"]
_REJECTED = (401, 403, 429, 503)
_BROKEN = "adapter_unhealthy"  # a 422 that Lorry counts as an error: the call had begun


class Bound(NamedTuple):
    low: float
    high: float


class Tally:
    """Calls by the version that served them, added up."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._calls: Counter[tuple[Key, Kind]] = Counter()
        self._tokens: dict[Which, Counter[Key]] = {"prompt": Counter(), "output": Counter()}
        self._lost: Counter[str] = Counter()  # by adapter; no answer said who would have served
        for record in records:
            self._add(record)

    def _add(self, record: Record) -> None:
        key, kind = key_of(record), kind_of(record)
        if key is None:
            self._lost[_BASE if record.is_base else record.model.partition("@")[0]] += 1
            return
        self._calls[key, kind] += 1
        self._tokens["prompt"][key] += record.prompt_tokens
        self._tokens["output"][key] += record.output_tokens

    @property
    def keys(self) -> set[Key]:
        return {key for key, _ in self._calls}

    @property
    def unclear(self) -> int:
        """Calls that the server may have counted as anything, or not at all."""
        known = sum(calls for (_, kind), calls in self._calls.items() if kind == "unclear")
        return known + self._lost.total()

    def calls(self, key: Key, sure: tuple[Kind, ...], maybe: tuple[Kind, ...] = ()) -> Bound:
        """How many calls a version must have had that ended so, and how many it may have had."""
        low = sum(self._calls[key, kind] for kind in sure)
        high = low + sum(self._calls[key, kind] for kind in maybe) + self._unclear(key)
        return Bound(low, high)

    def tokens(self, key: Key, which: Which) -> Bound:
        """Exact where each call's caller was told all of it; else only no fewer."""
        unsure = any(self._calls[key, kind] for kind in ("hung_up", "error")) or self._unclear(key)
        told = self._tokens[which][key]
        return Bound(told, math.inf if unsure else told)

    def _unclear(self, key: Key) -> int:
        lost = self._lost.total() if key == UNRESOLVED else self._lost[key[0]]
        return self._calls[key, "unclear"] + lost


def kind_of(record: Record) -> Kind:
    if record.outcome != "failed":
        return record.outcome
    if record.status in _REJECTED:
        return "rejected"
    if record.status >= 500 or record.reason.endswith(_BROKEN):
        return "error"
    if record.status >= 400:
        return "client_error"
    return "unclear"


def key_of(record: Record) -> Key | None:
    """Under whom the server counts a call; None where no answer told."""
    if record.served:
        name, _, version = record.served.partition("@")
        return name, version
    return UNRESOLVED if record.status >= 400 else None

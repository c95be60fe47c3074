"""Bounds of the counts that a server should have after the client's calls.

Bounds, because the two sides can't always know the same: a call that the client left may have ended
before the server noticed, and a call without an answer may never have reached the server.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from loadtest.records import Record

Key = tuple[str, str]  # adapter and version, the labels of the server's series
UNRESOLVED: Key = ("_unresolved", "")  # calls to unknown models
_BASE = "base"

# unclear: no answer or an incomplete one; the server may count it with any outcome.
Kind = Literal["ok", "hung_up", "client_error", "rejected", "error", "unclear"]
Which = Literal["prompt", "output"]
_REJECTED = (401, 403, 429, 503)
_BROKEN = "adapter_unhealthy"  # a 422 that Lorry counts as an error, because the call had begun
_STREAM_ERROR = "stream_error"  # an error event in a begun stream


class Bound(NamedTuple):
    low: float
    high: float


class Tally:
    """Counts of calls and tokens by the serving version."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._calls: Counter[tuple[Key, Kind]] = Counter()
        self._tokens: dict[Which, Counter[Key]] = {"prompt": Counter(), "output": Counter()}
        self._lost: Counter[str] = Counter()  # by adapter; no answer named the version
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
        """Calls that the server may have counted with any outcome, or not at all."""
        known = sum(calls for (_, kind), calls in self._calls.items() if kind == "unclear")
        return known + self._lost.total()

    def calls(self, key: Key, sure: tuple[Kind, ...], maybe: tuple[Kind, ...] = ()) -> Bound:
        """Bounds of a version's calls with these outcomes."""
        low = sum(self._calls[key, kind] for kind in sure)
        high = low + sum(self._calls[key, kind] for kind in maybe) + self._unclear(key)
        return Bound(low, high)

    def tokens(self, key: Key, which: Which) -> Bound:
        """Exact if the client received the usage of every call; otherwise a lower bound."""
        unsure = any(self._calls[key, kind] for kind in ("hung_up", "error")) or self._unclear(key)
        known = self._tokens[which][key]
        return Bound(known, math.inf if unsure else known)

    def _unclear(self, key: Key) -> int:
        lost = self._lost.total() if key == UNRESOLVED else self._lost[key[0]]
        return self._calls[key, "unclear"] + lost


def kind_of(record: Record) -> Kind:
    if record.outcome != "failed":
        return record.outcome
    if record.status in _REJECTED:
        return "rejected"
    reported = record.reason.startswith(_STREAM_ERROR) or record.reason.endswith(_BROKEN)
    if record.status >= 500 or reported:
        return "error"
    if record.status >= 400:
        return "client_error"
    return "unclear"


def key_of(record: Record) -> Key | None:
    """The labels with which the server counts a call; None if no answer named them."""
    if record.served:
        name, _, version = record.served.partition("@")
        return name, version
    return UNRESOLVED if record.status >= 400 else None

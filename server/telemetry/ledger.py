"""Counts per adapter version: a bounded number of accounts, and sums that never decrease.

At most `limit` versions have an account of their own, keyed by their label (NAME@VERSION), and a
quarter as many sums of adapters, whose weights callers choose. Beyond that the least recently used
version is folded into `_other`: its counts move there, so that sums over all accounts only grow. A
sum of adapters counts in `_other` itself, unless one of them has not been called for an hour.
Calls that still hold a folded account count into `_other`. A version that is called again gets a
new account, which starts at zero. Used in one thread, the event loop's.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.samples import Exemplar

from adapters.sums import is_sum

OTHER = "_other"
_KEPT_SECONDS = 3600.0  # for which a sum that is not called keeps its account from others

Trace = dict[str, str] | None  # an exemplar's labels; None without a trace to link to


@dataclass(slots=True)
class Count:
    value: float = 0.0
    exemplar: Exemplar | None = None


class Histogram:
    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar | None] = {}  # the newest of each bucket that has one

    def observe(self, value: float, trace: Trace = None) -> None:
        at = bisect_left(self.bounds, value)
        self.counts[at] += 1
        self.total += value
        if trace is not None:
            self.exemplars[at] = _exemplar(trace, value)

    def absorb(self, other: Histogram) -> None:
        self.counts = [
            mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.total += other.total
        for at, exemplar in other.exemplars.items():
            self.exemplars[at] = _newer(self.exemplars.get(at), exemplar)


class Account:
    """Counts by name and further labels, and histograms by name, each created when first used."""

    def __init__(self, key: str, bounds: Mapping[str, tuple[float, ...]]) -> None:
        self.key = key
        self.counters: dict[str, dict[tuple[str, ...], Count]] = {}
        self.histograms: dict[str, Histogram] = {}
        self._bounds = bounds

    def count(self, name: str, *labels: str, by: float = 1, trace: Trace = None) -> None:
        count = self._count(name, labels)
        count.value += by
        if trace is not None:
            count.exemplar = _exemplar(trace, by)

    def observe(self, name: str, value: float, trace: Trace = None) -> None:
        histogram = self.histograms.get(name)
        if histogram is None:
            histogram = self.histograms[name] = Histogram(self._bounds[name])
        histogram.observe(value, trace)

    def fold_into(self, other: Account) -> None:
        """Move everything to `other`, and become an alias of it."""
        for name, counts in self.counters.items():
            for labels, count in counts.items():
                theirs = other._count(name, labels)
                theirs.value += count.value
                theirs.exemplar = _newer(theirs.exemplar, count.exemplar)
        for name, histogram in self.histograms.items():
            other.histograms.setdefault(name, Histogram(histogram.bounds)).absorb(histogram)
        self.key, self.counters, self.histograms = other.key, other.counters, other.histograms

    def _count(self, name: str, labels: tuple[str, ...]) -> Count:
        return self.counters.setdefault(name, {}).setdefault(labels, Count())


@dataclass(slots=True)
class _Shelf:
    limit: int
    own: dict[str, Account]  # the least recently used first


class Ledger:
    """`bounds` has the buckets of each histogram; accounts of `fixed` keys are never folded."""

    def __init__(
        self, bounds: Mapping[str, tuple[float, ...]], limit: int, fixed: Iterable[str]
    ) -> None:
        self._bounds = bounds
        self._fixed = {key: Account(key, bounds) for key in (*fixed, OTHER)}
        self._versions = _Shelf(limit, {})
        self._sums = _Shelf(max(1, limit // 4), {})
        self._used_at: dict[str, float] = {}  # the accounts of sums

    @property
    def other(self) -> Account:
        return self._fixed[OTHER]

    def accounts(self) -> list[Account]:
        return [*self._fixed.values(), *self._versions.own.values(), *self._sums.own.values()]

    def versions(self) -> list[str]:
        """The labels of the versions, sums too, that have an account of their own."""
        return [*self._versions.own, *self._sums.own]

    def account(self, key: str) -> Account:
        """The version's own account, opened if need be; counts as a use."""
        if (fixed := self._fixed.get(key)) is not None:
            return fixed
        shelf = self._shelf(key)
        if shelf is self._sums and not self._has_room(key):
            return self.other
        account = shelf.own.pop(key, None) or Account(key, self._bounds)
        shelf.own[key] = account
        if len(shelf.own) > shelf.limit:
            self.fold(next(iter(shelf.own)))
        return account

    def _has_room(self, key: str) -> bool:
        """Whether a sum has an account, or may have one: those in use keep theirs.

        Or random weights would bring new series with each scrape.
        """
        now = time.monotonic()
        oldest = next(iter(self._sums.own), None)
        is_full = len(self._sums.own) >= self._sums.limit and key not in self._sums.own
        if is_full and now - self._used_at.get(str(oldest), now) < _KEPT_SECONDS:
            return False
        if is_full:
            self._used_at.pop(str(oldest), None)
        self._used_at[key] = now
        return True

    def find(self, key: str) -> Account:
        """The version's account, or `_other`'s where it has none."""
        return self._fixed.get(key) or self._shelf(key).own.get(key) or self.other

    def fold(self, key: str) -> None:
        """End the version's series; its counts stay in the sums."""
        self._used_at.pop(key, None)
        if (account := self._shelf(key).own.pop(key, None)) is not None:
            account.fold_into(self.other)

    def _shelf(self, key: str) -> _Shelf:
        return self._sums if is_sum(key) else self._versions


def labels_of(key: str) -> tuple[str, str]:
    """The values of the labels `adapter` and `version`: of NAME@VERSION, of `base`, or of a sum,
    which has no number."""
    if is_sum(key):
        return key, ""
    adapter, _, version = key.partition("@")
    return adapter, version


def _exemplar(trace: dict[str, str], value: float) -> Exemplar:
    return Exemplar(trace, value, time.time())


def _newer(one: Exemplar | None, other: Exemplar | None) -> Exemplar | None:
    given = [each for each in (one, other) if each is not None]
    return max(given, key=_moment, default=None)


def _moment(exemplar: Exemplar) -> float:
    assert isinstance(exemplar.timestamp, float)
    return exemplar.timestamp

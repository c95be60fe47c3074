"""Accounts, gauges and plain histograms as the text of /metrics.

In OpenMetrics, which Prometheus requests, prometheus_client replaces the `:` of vLLM's names by `_`
(`vllm_num_requests_running`) unless the scraper accepts UTF-8 names, as Prometheus does only since
version 3. But `:` needs no UTF-8, and dashboards and routers use the names with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder as choose_by_accept
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from server.telemetry.ledger import Account, Histogram, Ledger, labels_of

PREFIX = "lorry_"
_OPENMETRICS = "application/openmetrics-text"
PER_VERSION = ("adapter", "version")

# Reads a metric: the label values and the number of each of its series.
Source = Callable[[], Iterable[tuple[Sequence[str], float]]]
Kind = Literal["gauge", "counter"]


@dataclass(frozen=True, slots=True)
class Derived:
    name: str
    text: str
    labels: tuple[str, ...]
    read: Source
    kind: Kind

    def family(self) -> Metric:
        family = _family(self.name, self.text, self.kind)
        suffix = "_total" if self.kind == "counter" else ""
        for values, number in self.read():
            labelled = dict(zip(self.labels, values, strict=True))
            family.add_sample(family.name + suffix, labelled, number)
        return family


class Exposition(Collector):
    """`counters` is {name: (text, further labels)}, `histograms` {name: text}."""

    def __init__(
        self,
        ledger: Ledger,
        counters: dict[str, tuple[str, tuple[str, ...]]],
        histograms: dict[str, str],
    ) -> None:
        self._ledger = ledger
        self._counters = counters
        self._histograms = histograms
        self._derived: dict[str, Derived] = {}
        self._plain: dict[str, tuple[str, Histogram]] = {}

    def add_derived(
        self, name: str, text: str, labels: tuple[str, ...], read: Source, kind: Kind = "gauge"
    ) -> None:
        self._derived[name] = Derived(name, text, labels, read, kind)

    def add_histogram(self, name: str, text: str, histogram: Histogram) -> None:
        self._plain[name] = (text, histogram)

    def describe(self) -> Iterable[Metric]:
        return []  # otherwise the registry collects once to learn the names

    def collect(self) -> Iterator[Metric]:
        accounts = self._ledger.accounts()
        for name, (text, further) in self._counters.items():
            yield _counter_family(name, text, further, accounts)
        for name, text in self._histograms.items():
            family = _family(name, text, "histogram")
            for account in accounts:
                if (histogram := account.histograms.get(name)) is not None:
                    _add_buckets(
                        family,
                        dict(zip(PER_VERSION, labels_of(account.key), strict=True)),
                        histogram,
                    )
            yield family
        for name, (text, histogram) in self._plain.items():
            family = _family(name, text, "histogram")
            _add_buckets(family, {}, histogram)
            yield family
        for derived in self._derived.values():
            yield derived.family()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A registry at one moment: taken in the event loop, encoded in a thread."""

    families: list[Metric]

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Snapshot:
        return cls(list(registry.collect()))

    def collect(self) -> Iterable[Metric]:
        return self.families


def choose_encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """The encoder and the content type for an Accept header."""
    try:
        encode, content_type = choose_by_accept(accept)
    except TypeError:  # by prometheus_client, for a version that is not a number
        encode, content_type = choose_by_accept("")
    if not content_type.startswith(_OPENMETRICS):
        return encode, content_type
    return (
        partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8, version="1.0.0"),
        f"{_OPENMETRICS}; version=1.0.0; charset=utf-8",
    )


def _family(name: str, text: str, kind: str) -> Metric:
    return Metric(PREFIX + name, text, kind)


def _counter_family(
    counter: str, text: str, labels: tuple[str, ...], accounts: Iterable[Account]
) -> Metric:
    family = _family(counter, text, "counter")
    names = (*PER_VERSION, *labels)
    for account in accounts:
        for values, count in account.counters.get(counter, {}).items():
            labelled = dict(zip(names, (*labels_of(account.key), *values), strict=True))
            family.add_sample(
                f"{family.name}_total", labelled, count.value, exemplar=count.exemplar
            )
    return family


def _add_buckets(family: Metric, labels: dict[str, str], histogram: Histogram) -> None:
    below = 0
    bounds = (*histogram.bounds, float("inf"))
    for at, (bound, count) in enumerate(zip(bounds, histogram.counts, strict=True)):
        below += count
        labelled = labels | {"le": floatToGoString(bound)}
        family.add_sample(
            f"{family.name}_bucket", labelled, below, exemplar=histogram.exemplars.get(at)
        )
    family.add_sample(f"{family.name}_count", labels, below)
    family.add_sample(f"{family.name}_sum", labels, histogram.total)

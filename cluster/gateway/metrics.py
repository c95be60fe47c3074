"""The cluster's metrics: every replica's series with the label `replica`, and the gateway's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.gateway.picking import Picker


class GatewayMetrics:
    def __init__(self, picker: Picker) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_InFlight(picker))
        self.retries = self._counter(
            "retries", "Calls that were asked elsewhere, as a replica could not answer them."
        )
        self.cuts = self._counter(
            "cut_answers", "Answers that were cut because their replica was lost."
        )
        self.refusals = self._counter(
            "refusals", "Calls that were refused because no replica took calls."
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, help_: str) -> Counter:
        return Counter(f"lorry_gateway_{name}", help_, registry=self._registry)


class _InFlight(Collector):
    def __init__(self, picker: Picker) -> None:
        self._picker = picker

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "lorry_gateway_requests_in_flight",
            "Calls of this gateway that a replica answers now.",
            labels=["replica"],
        )
        for name, count in sorted(self._picker.in_flight.items()):
            gauge.add_metric([name], count)
        yield gauge


def merge(pages: Mapping[str, bytes]) -> bytes:
    """One page of Prometheus' text format (0.0.4) from those of the replicas, by their names.

    Each family stands once, as the format wants, with every replica's samples below it.
    """
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for replica, page in pages.items():
        label = f'replica="{replica}"'.encode()
        family = b""
        for line in page.splitlines():
            if line.startswith((b"# HELP ", b"# TYPE ")):
                family = line.split(b" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            elif line and not line.startswith(b"#"):
                samples.setdefault(family, []).append(_labelled(line, label))
    lines = [line for family in samples for line in (*heads.get(family, ()), *samples[family])]
    return b"\n".join([*lines, b""])


def _labelled(sample: bytes, label: bytes) -> bytes:
    """A sample with one label more, which comes first."""
    name, brace, rest = sample.partition(b"{")
    if not brace or b" " in name:  # no labels; a brace in a value there is none
        name, _, rest = sample.partition(b" ")
        return name + b"{" + label + b"} " + rest
    comma = b"" if rest.startswith(b"}") else b","
    return name + b"{" + label + comma + rest

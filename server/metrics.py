"""The `lorry_*` series (names and labels are a contract: docs/observability.md).

Takes the registry to live in, so that a test owns its own. Knows nothing of HTTP or of vLLM.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from adapters.catalog import AdapterVersion
from server.call import Call

_PER_ADAPTER = ("adapter", "version")
# The OpenTelemetry GenAI convention's boundaries, in seconds.
_DURATION_BUCKETS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
)  # fmt: skip
_TOKEN_GAP_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5,
)  # fmt: skip


class Metrics:
    def __init__(self, registry: CollectorRegistry, base: str) -> None:
        self.registry = registry
        self._base = base

        def counter(name: str, text: str, labels: tuple[str, ...] = _PER_ADAPTER) -> Counter:
            return Counter(f"lorry_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"lorry_{name}", text, _PER_ADAPTER, registry=registry, buckets=buckets
            )

        def gauge(name: str, text: str, labels: tuple[str, ...] = _PER_ADAPTER) -> Gauge:
            return Gauge(f"lorry_{name}", text, labels, registry=registry)

        self.requests = counter(
            "requests", "Calls by how they ended.", (*_PER_ADAPTER, "endpoint", "outcome")
        )
        self.duration = histogram(
            "request_duration_seconds", "First byte in to last byte out.", _DURATION_BUCKETS
        )
        self.first_token = histogram(
            "time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN_BUCKETS
        )
        self.token_gap = histogram(
            "inter_token_latency_seconds", "Between two tokens.", _TOKEN_GAP_BUCKETS
        )
        self.queue_time = histogram(
            "queue_time_seconds", "Waiting in the engine before prefill.", _FIRST_TOKEN_BUCKETS
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of ended calls.")
        self.generation_tokens = counter("generation_tokens", "Tokens made, by ended calls.")
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens from the prefix cache.")
        self.in_flight = gauge("requests_in_flight", "Calls being answered now.")
        self.info = gauge(
            "adapter_info",
            "1 for each resident version.",
            (*_PER_ADAPTER, "digest", "rank", "base"),
        )
        self.resident = gauge(
            "adapter_resident", "1 where a version is held.", (*_PER_ADAPTER, "tier")
        )
        self.loads = counter("adapter_loads", "Loads into the engine.", (*_PER_ADAPTER, "result"))
        self.load_time = histogram(
            "adapter_load_seconds", "Time of a load into the engine.", _FIRST_TOKEN_BUCKETS
        )
        self.nonfinite = gauge(
            "adapter_nonfinite_values",
            "Values of a resident version that were not finite or far too large, so far.",
        )
        self.evictions = counter(
            "adapter_evictions", "Versions that made room.", (*_PER_ADAPTER, "tier")
        )

    def in_flight_while(self, call: Call) -> AbstractContextManager[None]:
        """Counts the call as in flight for the length of a `with` block."""
        return self.in_flight.labels(call.adapter_label, call.version_label).track_inprogress()

    def record(self, call: Call, exemplar: dict[str, str] | None) -> None:
        """Count a call that has ended."""
        labels = (call.adapter_label, call.version_label)
        self.requests.labels(*labels, call.endpoint, call.outcome).inc(exemplar=exemplar)
        self.duration.labels(*labels).observe(call.duration, exemplar=exemplar)
        if (first := call.time_to_first_token) is not None:
            self.first_token.labels(*labels).observe(first, exemplar=exemplar)
        for sequence in call.sequences:
            stats = sequence.stats
            if stats.scheduled_ts:
                self.queue_time.labels(*labels).observe(
                    stats.scheduled_ts - stats.queued_ts, exemplar=exemplar
                )
        self.prompt_tokens.labels(*labels).inc(call.prompt_tokens)
        self.generation_tokens.labels(*labels).inc(call.generation_tokens)
        self.cached_tokens.labels(*labels).inc(call.cached_tokens)

    def token_made(self, call: Call, gap: float) -> None:
        """Called for each token after a sequence's first, by the engine's output hook."""
        self.token_gap.labels(call.adapter_label, call.version_label).observe(gap)

    def values_repaired(self, call: Call, count: int) -> None:
        """Called when the engine says so with a token; `count` grows while the version stays."""
        self.nonfinite.labels(call.adapter_label, call.version_label).set(count)

    def loaded(self, version: AdapterVersion, seconds: float) -> None:
        labels = (version.name, str(version.version))
        self.loads.labels(*labels, "ok").inc()
        self.load_time.labels(*labels).observe(seconds)
        self.resident.labels(*labels, "host").set(1)
        self.info.labels(*labels, version.digest, str(version.rank), self._base).set(1)
        self.nonfinite.labels(*labels).set(0)

    def load_failed(self, version: AdapterVersion) -> None:
        self.loads.labels(version.name, str(version.version), "error").inc()

    def evicted(self, version: AdapterVersion) -> None:
        """It made room for another."""
        self.evictions.labels(version.name, str(version.version), "host").inc()
        self.unloaded(version)

    def unloaded(self, version: AdapterVersion) -> None:
        labels = (version.name, str(version.version))
        self.resident.remove(*labels, "host")
        self.nonfinite.remove(*labels)
        self.info.remove(*labels, version.digest, str(version.rank), self._base)

"""The `lorry_*` series (names and labels are a contract: docs/observability.md).

Takes a registry, so that each test has its own. Knows nothing about HTTP or vLLM.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from adapters.catalog import AdapterVersion
from adapters.sums import part_labels
from server.call import BASE, UNRESOLVED, Call
from server.telemetry.exposition import PER_VERSION, Exposition, Kind, Source
from server.telemetry.ledger import Account, Histogram, Ledger, Trace, labels_of

DEFAULT_LIMIT = 200
# The OpenTelemetry GenAI convention's boundaries, in seconds.
_DURATION_BUCKETS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_TOKEN_GAP_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
_IDLE_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)

_COUNTERS = {
    "requests": ("Ended calls by endpoint and outcome.", ("endpoint", "outcome")),
    "finished_sequences": ("Ended sequences by finish reason.", ("reason",)),
    "prompt_tokens": ("Prompt tokens of ended calls.", ()),
    "generation_tokens": ("Generated tokens of ended calls.", ()),
    "cached_prompt_tokens": ("Prompt tokens of ended calls from the prefix cache.", ()),
    "queue_rejections": ("Calls refused because too many wait, by reason.", ("reason",)),
    "adapter_loads": ("Loads of versions into the engine by result.", ("result",)),
    "adapter_evictions": ("Evicted versions by tier.", ("tier",)),
}
_HISTOGRAMS = {
    "request_duration_seconds": ("From the first byte in to the last byte out.", _DURATION_BUCKETS),
    "time_to_first_token_seconds": ("From arrival to the first token.", _FIRST_TOKEN_BUCKETS),
    "inter_token_latency_seconds": ("Between two tokens of a sequence.", _TOKEN_GAP_BUCKETS),
    "queue_wait_seconds": ("In the queue for the engine, per request.", _FIRST_TOKEN_BUCKETS),
    "queue_time_seconds": ("Before prefill, in the queue and the engine.", _FIRST_TOKEN_BUCKETS),
    "prefill_time_seconds": ("From the first scheduling to the first token.", _FIRST_TOKEN_BUCKETS),
    "decode_time_seconds": ("From the first token to the last.", _DURATION_BUCKETS),
    "adapter_load_seconds": ("Duration of a load into the engine.", _FIRST_TOKEN_BUCKETS),
}


class Metrics:
    """At most `limit` adapter versions have series of their own at one time."""

    def __init__(self, registry: CollectorRegistry, base: str, limit: int = DEFAULT_LIMIT) -> None:
        self.registry = registry
        self.base = base
        bounds = {name: bounds for name, (_, bounds) in _HISTOGRAMS.items()}
        self._ledger = Ledger(bounds, limit, fixed=[BASE, UNRESOLVED])
        self._keys = Ledger({}, limit, fixed=())  # by the key's name
        self._refusals: Counter[str] = Counter()
        self._live = LiveCalls()
        self._idle = Histogram(_IDLE_BUCKETS)
        texts = {name: text for name, (text, _) in _HISTOGRAMS.items()}
        self._exposition = Exposition(self._ledger, _COUNTERS, texts)
        self._exposition.add_histogram(
            "adapter_eviction_idle_seconds",
            "Time since the last use of a version that was evicted from host memory.",
            self._idle,
        )
        self._add_gauges()
        self._add_keys()
        registry.register(self._exposition)

    def _add_gauges(self) -> None:
        self.derive(
            "requests_in_flight",
            "Calls being answered now.",
            PER_VERSION,
            lambda: self._per_account(self._live.all),
        )
        self.derive(
            "requests_waiting",
            "Calls that wait for their adapter or in the engine's queue.",
            PER_VERSION,
            lambda: self._per_account(self._live.waiting),
        )
        self.derive(
            "queue_depth",
            "Requests that wait for their turn to enter the engine.",
            PER_VERSION,
            self._queue_depth,
        )
        self.derive(
            "oldest_waiting_seconds",
            "Time that the longest waiting call has waited so far.",
            (),
            lambda: [((), self._longest_wait())],
        )

    def _add_keys(self) -> None:
        self.derive(
            "key_requests",
            "Ended calls of a key by outcome.",
            ("key", "outcome"),
            lambda: self._per_key("requests"),
            kind="counter",
        )
        self.derive(
            "key_tokens",
            "Tokens of a key's ended calls: prompt, generation, and cached ones of the prompt.",
            ("key", "kind"),
            lambda: self._per_key("tokens"),
            kind="counter",
        )
        self.derive(
            "limit_refusals",
            "Calls refused by a limit of their key or adapter, by the limit.",
            ("reason",),
            lambda: [((reason,), count) for reason, count in self._refusals.items()],
            kind="counter",
        )

    def _per_key(self, counter: str) -> Iterator[tuple[tuple[str, ...], float]]:
        for account in self._keys.accounts():
            for labels, count in account.counters.get(counter, {}).items():
                yield (account.key, *labels), count.value

    def derive(
        self, name: str, text: str, labels: tuple[str, ...], read: Source, kind: Kind = "gauge"
    ) -> None:
        """Add a metric whose series `read` derives at each scrape."""
        self._exposition.add_derived(name, text, labels, read, kind)

    def begin(self, call: Call, trace: Trace) -> None:
        """Count the call, whose adapter is known, as in flight until `record` or `forget`."""
        self._live.begin(call, self._ledger.account(call.account), trace)

    def record(self, call: Call, trace: Trace) -> None:
        """Count a call that has ended."""
        live = self._live.end(call)
        account = live.account if live else self._ledger.account(call.account)
        account.count("requests", call.endpoint, call.outcome, trace=trace)
        account.observe("request_duration_seconds", call.duration, trace)
        if (first := call.time_to_first_token) is not None:
            account.observe("time_to_first_token_seconds", first, trace)
        for sequence in call.sequences:
            if sequence.finish_reason is not None:
                account.count("finished_sequences", sequence.finish_reason)
            for phase, start, end in sequence.phases():
                account.observe(f"{phase}_time_seconds", end - start, trace)
        account.count("prompt_tokens", by=call.prompt_tokens)
        account.count("generation_tokens", by=call.generation_tokens)
        account.count("cached_prompt_tokens", by=call.cached_tokens)
        if call.key is not None:
            self._record_key(self._keys.account(call.key.name), call)

    def _record_key(self, account: Account, call: Call) -> None:
        account.count("requests", call.outcome)
        account.count("tokens", "prompt", by=call.prompt_tokens)
        account.count("tokens", "generation", by=call.generation_tokens)
        account.count("tokens", "cached_prompt", by=call.cached_tokens)

    def forget(self, call: Call) -> None:
        """The call is no longer in flight, even if recording it failed."""
        self._live.end(call)

    def token_made(self, call: Call, gap: float) -> None:
        """Called by the engine for each token after a sequence's first; `gap` in seconds."""
        if (live := self._live.get(call)) is not None:
            live.account.observe("inter_token_latency_seconds", gap, live.trace)

    def queue_left(self, call: Call, seconds: float) -> None:
        """A request of the call enters the engine after a wait."""
        if (live := self._live.get(call)) is not None:
            live.account.observe("queue_wait_seconds", seconds, live.trace)

    def queue_refused(self, call: Call, reason: str) -> None:
        """A request was refused: too many `calls` or `tokens` wait, or it was `displaced`."""
        self._ledger.account(call.account).count("queue_rejections", reason)

    def limit_refused(self, reason: str) -> None:
        """A call was refused by a limit on `requests`, `tokens`, `in_flight` or the `budget`, or is
        `too_large` for one."""
        self._refusals[reason] += 1

    def step_made(self, running: int) -> None:
        """Called after each engine step with the number of sequences that run."""
        self._live.running_sequences = running

    def loaded(self, version: AdapterVersion, seconds: float) -> None:
        account = self._ledger.account(version.label)
        account.count("adapter_loads", "ok")
        account.observe("adapter_load_seconds", seconds)

    def load_failed(self, version: AdapterVersion) -> None:
        self._ledger.account(version.label).count("adapter_loads", "error")

    def evicted(self, version: AdapterVersion, idle_seconds: float) -> None:
        """Count an eviction from host memory."""
        self._ledger.find(version.label).count("adapter_evictions", "host")
        self._idle.observe(idle_seconds)

    def displaced(self, label: str) -> None:
        """Count a version that lost its slot in the engine to another."""
        self._ledger.find(label).count("adapter_evictions", "device")

    def removed(self, label: str) -> None:
        """End the series of a version that was removed, and of its sums; counts go to `_other`."""
        for each in self.versions():
            if label == each or label in part_labels(each):
                self._ledger.fold(each)

    def versions(self) -> list[str]:
        """The labels of the versions that have series of their own."""
        return self._ledger.versions()

    def versions_called(self) -> tuple[list[AdapterVersion], list[AdapterVersion]]:
        """The versions of the calls that run, and of those that wait, the newest call first."""
        waiting = self._live.waiting()
        ids = {id(live) for live in waiting}
        running = (live for live in self._live.all() if id(live) not in ids)
        return _versions_of(running), _versions_of(waiting)

    @property
    def traffic(self) -> int:
        """How many times a call has begun or ended."""
        return self._live.changes

    @property
    def waiting(self) -> int:
        """How many calls wait for their adapter or in the engine's queue."""
        return len(self._live.waiting())

    def is_busy(self) -> bool:
        """Whether any call is in flight."""
        return bool(self._live.all())

    def _per_account(
        self, calls: Callable[[], Iterable[LiveCall]]
    ) -> Iterator[tuple[tuple[str, str], float]]:
        found = Counter(live.account.key for live in calls())
        for account in self._ledger.accounts():
            yield labels_of(account.key), found[account.key]

    def _queue_depth(self) -> Iterator[tuple[tuple[str, str], float]]:
        found: Counter[str] = Counter()
        for live in self._live.all():
            found[live.account.key] += live.call.waiting
        for account in self._ledger.accounts():
            yield labels_of(account.key), found[account.key]

    def _longest_wait(self) -> float:
        since = [live.since for live in self._live.waiting()]
        return time.monotonic() - min(since) if since else 0.0


def _versions_of(calls: Iterable[LiveCall]) -> list[AdapterVersion]:
    versions = [live.call.version for live in calls if live.call.version is not None]
    return list({version.label: version for version in reversed(versions)}.values())


@dataclass(slots=True)
class LiveCall:
    call: Call
    account: Account
    trace: Trace
    since: float = field(default_factory=time.monotonic)

    @property
    def waits_outside(self) -> bool:
        """Whether it waits for its turn or for its adapter."""
        return self.call.waiting > 0


class LiveCalls:
    """The calls being answered now, and which of them wait.

    Waiting is derived at each read, not counted up and down, so that no count can drift.
    """

    def __init__(self) -> None:
        self.running_sequences = 0  # as of the engine's last step
        self.changes = 0  # how many times a call has begun or ended
        self._calls: dict[str, LiveCall] = {}

    def begin(self, call: Call, account: Account, trace: Trace) -> None:
        self._calls[call.engine_id] = LiveCall(call, account, trace)
        self.changes += 1

    def get(self, call: Call) -> LiveCall | None:
        return self._calls.get(call.engine_id)

    def end(self, call: Call) -> LiveCall | None:
        live = self._calls.pop(call.engine_id, None)
        self.changes += live is not None
        return live

    def all(self) -> list[LiveCall]:
        return list(self._calls.values())

    def waiting(self) -> list[LiveCall]:
        """The calls that wait for an adapter or in the engine's queue, the longest wait first."""
        scheduled = self._scheduled()
        return [
            live
            for live in self._calls.values()
            if live.waits_outside
            or (
                live.call.sequences
                and not any(id(each) in scheduled for each in live.call.sequences)
            )
        ]

    def _scheduled(self) -> set[int]:
        """The sequences that the engine has scheduled, by `id`.

        The engine reports how many run after every step, but which ones only with their first
        tokens. The rest is an estimate: it schedules in order, except where an adapter has no slot.
        """
        sequences = [each for live in self._calls.values() for each in live.call.sequences]
        known = [each for each in sequences if each.stats.scheduled_ts or each.finish_reason]
        running = sum(not each.finish_reason for each in known)
        unreported = sorted(
            (each for each in sequences if not each.stats.scheduled_ts and not each.finish_reason),
            key=lambda each: each.handed_in,
        )
        begun = unreported[: max(self.running_sequences - running, 0)]
        return {id(each) for each in (*known, *begun)}

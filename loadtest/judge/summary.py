"""The figures of a run from its records: overall, by phase, by stream, by adapter.

Definitions:
  requests       all calls; failed_share is relative to them
  rates          answers and tokens within the planned seconds of the phases, per second. Whatever
                 arrives after a phase's last second, as the callers of a closed loop finish,
                 neither adds to a rate nor extends its time.
  tokens         of calls that did not fail. Those of a streamed call are spread evenly over its
                 pieces, each of which has a time; those of another call count at its end.
  latencies      of answered calls, from when a call was due. Failed calls have none, calls that
                 hung up have a TTFT alone, calls without streaming an E2E alone. Failures count
                 in goodput_share.
  goodput_share  share of calls answered within the scenario's `slo`, of all that did not hang up
  failed_unanswered  failed calls of which no part of an answer had arrived
  cut_off        failed calls whose connection ended without an error from the server
  jain, jain_tokens, least_share  see fairness.py
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import fsum

import msgspec

from loadtest.judge import fairness
from loadtest.plan.scenario import Metric, Scenario, Slo
from loadtest.records import Record, Run, Window
from loadtest.statistics import Latency, jain_of, latency_of, percentile

LATE_SECONDS = 0.05  # allowed lateness of a sent call
_CUT_OFF = ("connect", "disconnected", "stream_broken")  # reasons of failures


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a group of calls. None: no call has a value."""

    seconds: float  # planned, of the group's phases
    requests: int
    ok: int
    failed: int
    hung_up: int
    reasons: dict[str, int]  # of failures, the most frequent first
    failed_unanswered: int
    cut_off: int
    failed_share: float | None
    goodput_share: float | None
    jain: float | None
    jain_tokens: float | None
    least_share: float | None
    requests_per_second: float | None
    output_tokens_per_second: float | None
    ttft: Latency | None
    itl: Latency | None
    tpot: Latency | None
    e2e: Latency | None
    late: int  # sent more than LATE_SECONDS late by the client
    lateness_p99_ms: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`overall`, `streams`, `base`, `adapters`, `hot` and `cold` are of the measured phases."""

    slo: Slo
    overall: Stats
    phases: dict[str, Stats]
    streams: dict[str, Stats]
    phase_streams: dict[str, dict[str, Stats]]
    base: Stats | None
    adapters: dict[str, Stats]  # by requested model, the most requested first
    hot: Stats | None  # the most requested adapters, which together get half of the calls
    cold: Stats | None  # the others


def summarize(run: Run, scenario: Scenario) -> Summary:
    measured = [window for window in run.windows if window.measured]
    by_phase = _group(run.records, lambda record: record.phase)
    counted = [record for window in measured for record in by_phase.get(window.phase, [])]
    models = _group((r for r in counted if not r.is_base), lambda record: record.model)
    ranked = sorted(models, key=lambda model: (-len(models[model]), model))
    hot, cold = _split_by_calls(models, ranked)

    def stats(records: Sequence[Record], windows: Sequence[Window] = measured) -> Stats:
        return stats_of(records, windows, scenario.slo)

    def some(records: Sequence[Record]) -> Stats | None:
        return stats(records) if records else None

    return Summary(
        slo=scenario.slo,
        overall=stats(counted),
        phases={w.phase: stats(by_phase.get(w.phase, []), [w]) for w in run.windows},
        streams={
            name: stats([r for r in counted if r.stream == name], windows)
            for name, windows in _by_stream(measured).items()
        },
        phase_streams={
            w.phase: {
                name: stats([r for r in by_phase.get(w.phase, []) if r.stream == name], [w])
                for name in w.planned
            }
            for w in run.windows
        },
        base=some([record for record in counted if record.is_base]),
        adapters={model: stats(models[model]) for model in ranked},
        hot=some([record for model in hot for record in models[model]]),
        cold=some([record for model in cold for record in models[model]]),
    )


def stats_of(records: Sequence[Record], windows: Sequence[Window], slo: Slo) -> Stats:
    """The figures of calls of these phases."""
    ok = [record for record in records if record.outcome == "ok"]
    failed = [record for record in records if record.outcome == "failed"]
    stayed = len(ok) + len(failed)
    seconds = fsum(window.seconds for window in windows)
    by_second = fairness.by_second(records, windows)
    lateness = sorted(1000 * record.lateness for record in records)
    return Stats(
        seconds=seconds,
        requests=len(records),
        ok=len(ok),
        failed=len(failed),
        hung_up=len(records) - stayed,
        reasons=dict(Counter(record.reason for record in failed).most_common()),
        failed_unanswered=sum(not record.has_begun for record in failed),
        cut_off=sum(record.reason in _CUT_OFF for record in failed),
        failed_share=len(failed) / len(records) if records else None,
        goodput_share=sum(_is_good(r, slo) for r in ok) / stayed if stayed else None,
        jain=jain_of(fairness.speeds(records)),
        jain_tokens=jain_of(fairness.tokens(by_second)),
        least_share=fairness.least_share(by_second),
        requests_per_second=_rate(_ended_in_time(ok, windows), seconds),
        output_tokens_per_second=_rate(_tokens_in_time(records, windows), seconds),
        ttft=latency_of(_ttfts(records)),
        itl=latency_of(gap for record in ok if record.streamed for gap in record.gaps),
        tpot=latency_of(record.tpot for record in ok if record.tpot is not None),
        e2e=latency_of(record.duration for record in ok),
        late=sum(record.lateness > LATE_SECONDS for record in records),
        lateness_p99_ms=percentile(lateness, 0.99) if lateness else None,
    )


def metric_of(
    summary: Summary, metric: Metric, phase: str | None = None, stream: str | None = None
) -> float | None:
    """A metric of a scenario; None without calls (but `requests` is 0 then)."""
    stats = _select(summary, phase, stream)
    if metric == "requests":
        return 0.0 if stats is None else float(stats.requests)
    if stats is None or not stats.requests:
        return None
    if not metric.endswith("_ms"):
        value: float | None = getattr(stats, metric)
        return value
    kind, which, _ = metric.split("_")
    latency: Latency | None = getattr(stats, kind)
    return None if latency is None else float(getattr(latency, which))


def _select(summary: Summary, phase: str | None, stream: str | None) -> Stats | None:
    if phase is None:
        return summary.overall if stream is None else summary.streams.get(stream)
    if stream is None:
        return summary.phases.get(phase)
    return summary.phase_streams.get(phase, {}).get(stream)


def _group(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    groups = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(groups)


def _by_stream(windows: Sequence[Window]) -> dict[str, list[Window]]:
    """Each stream's phases in their order: its rates refer to these alone."""
    found: dict[str, list[Window]] = {}
    for window in windows:
        for name in window.planned:
            found.setdefault(name, []).append(window)
    return found


def _split_by_calls(
    models: dict[str, list[Record]], ranked: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    before = accumulate((len(models[model]) for model in ranked), initial=0)
    half = sum(map(len, models.values())) / 2
    count = sum(calls < half for calls, _ in zip(before, ranked, strict=False))
    return ranked[:count], ranked[count:]


def _ended_in_time(records: Sequence[Record], windows: Sequence[Window]) -> int:
    ends = _ends(windows)
    return sum(record.ended < ends[record.phase] for record in records)


def _tokens_in_time(records: Sequence[Record], windows: Sequence[Window]) -> float:
    ends = _ends(windows)
    return fsum(_tokens_until(ends[record.phase], record) for record in records)


def _tokens_until(end: float, record: Record) -> float:
    if record.outcome != "failed" and record.ended < end:
        return record.output_tokens  # fast path: a run may have millions of pieces
    times = record.token_times
    in_time = sum(time < end for time in times)
    return record.output_tokens * in_time / len(times) if times else 0.0


def _ends(windows: Sequence[Window]) -> dict[str, float]:
    return {window.phase: window.began + window.seconds for window in windows}


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if seconds else None


def _ttfts(records: Sequence[Record]) -> Iterator[float]:
    for record in records:
        if record.streamed and record.outcome != "failed" and record.ttft is not None:
            yield record.ttft


def _is_good(record: Record, slo: Slo) -> bool:
    """Whether a call kept the bounds; a streamed answer without content has its end as TTFT."""
    ttft = record.duration if record.ttft is None else record.ttft
    kept = [(record.duration, slo.e2e_ms)]
    if record.streamed:
        kept += [(ttft, slo.ttft_ms), (record.tpot or 0.0, slo.tpot_ms)]
    return all(most is None or 1000 * seconds <= most for seconds, most in kept)

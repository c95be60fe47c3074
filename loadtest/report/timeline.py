"""A run over time, in equal bins from the first phase's begin to the last call's end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil

import msgspec

from loadtest.records import Record, Run
from loadtest.statistics import Latency, latency_of

BINS = 150  # at most: more are not distinguishable on a page
_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """All lists have one value per bin; counts are per second."""

    seconds: float  # of a bin
    begins: list[float]  # seconds since the run's begin
    due: list[float]  # calls due
    answered: list[float]
    failed: list[float]
    tokens: list[float]
    in_flight: list[float]  # mean
    ttft: list[Latency | None]  # of the calls due then


def begin_of(run: Run) -> float:
    """Begin of the first phase, on the records' clock."""
    return min((window.began for window in run.windows), default=0.0)


def timeline_of(run: Run) -> Timeline:
    began = begin_of(run)
    length = max((window.ended for window in run.windows), default=0.0) - began
    width = _width(length)
    count = max(ceil(length / width), 1)

    def per_second(events: Iterable[tuple[float, float]]) -> list[float]:
        return [total / width for total in _totals(events, began, width, count)]

    return Timeline(
        seconds=width,
        begins=[index * width for index in range(count)],
        due=per_second((record.scheduled, 1) for record in run.records),
        answered=per_second((r.ended, 1) for r in run.records if r.outcome == "ok"),
        failed=per_second((r.ended, 1) for r in run.records if r.outcome == "failed"),
        tokens=per_second(_tokens(run.records)),
        in_flight=per_second(_presence(run.records, began, width)),
        ttft=_ttft(run.records, began, width, count),
    )


def _width(length: float) -> float:
    return next((each for each in _SECONDS if length / each <= BINS), length / BINS)


def _totals(
    events: Iterable[tuple[float, float]], began: float, width: float, count: int
) -> list[float]:
    totals = [0.0] * count
    for time, amount in events:
        totals[_bin(time, began, width, count)] += amount
    return totals


def _bin(time: float, began: float, width: float, count: int) -> int:
    return min(max(int((time - began) / width), 0), count - 1)


def _tokens(records: Sequence[Record]) -> Iterable[tuple[float, float]]:
    for record in records:
        times = record.token_times
        yield from ((time, record.output_tokens / len(times)) for time in times)


def _presence(
    records: Sequence[Record], began: float, width: float
) -> Iterable[tuple[float, float]]:
    """Each call's seconds in each bin; divided by the bin's length, the mean number in flight."""
    for record in records:
        time = record.sent
        while time < record.ended:
            edge = began + (int((time - began) / width) + 1) * width
            until = min(max(edge, time + 1e-6), record.ended)
            yield (time + until) / 2, until - time
            time = until


def _ttft(
    records: Sequence[Record], began: float, width: float, count: int
) -> list[Latency | None]:
    found: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record.streamed and record.outcome != "failed" and record.ttft is not None:
            found[_bin(record.scheduled, began, width, count)].append(record.ttft)
    return [latency_of(found[index]) for index in range(count)]

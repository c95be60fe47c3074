"""How evenly adapters are served. The base's calls do not count.

jain         Jain's index of the adapters' speeds. An adapter's speed is the mean of its calls'
             output tokens per second of waiting (0 for a failed call). It does not depend on the
             number of calls, so that a rarely called adapter does not look badly served. Unequal
             answer lengths lower it too: compare it with the index of the same traffic elsewhere,
             not with 1.
jain_tokens  Jain's index of the adapters' output tokens within the phases' planned seconds. It
             measures the server only if all adapters are called alike, as much as they can get:
             by a closed loop that calls them in turn, with as many callers for each.
least_share  the smallest share of its due that any adapter got in any ten seconds of a phase,
             under traffic as for jain_tokens. Windows begin at each whole second of the phase and
             end within its planned seconds; an adapter's due is the mean of the phase's adapters
             in that window. 1: all got the same; 0: one got nothing for ten seconds. Windows
             without any token do not count. None for phases below ten seconds, or one adapter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import fsum

from loadtest.records import Record, Window

SHARE_SECONDS = 10

# Output tokens in each whole second of a phase, by adapter with a call in it.
Seconds = dict[str, list[float]]


def speeds(records: Sequence[Record]) -> list[float]:
    """Output tokens per second of waiting of each adapter, the mean of its calls."""
    found = defaultdict(list)
    for record in records:
        if not record.is_base and record.outcome != "hung_up":
            tokens = record.output_tokens if record.outcome == "ok" else 0
            found[record.model].append(tokens / max(record.duration, 1e-9))
    return [fsum(each) / len(each) for each in found.values()]


def by_second(records: Sequence[Record], windows: Sequence[Window]) -> list[Seconds]:
    """The adapters' output tokens in each phase."""
    phases = {window.phase: window for window in windows}
    found: dict[str, Seconds] = {phase: {} for phase in phases}
    for record in records:
        if not record.is_base:
            window = phases[record.phase]
            seconds = found[record.phase].setdefault(record.model, [0.0] * int(window.seconds))
            _add(record, window.began, seconds)
    return list(found.values())


def tokens(phases: Iterable[Seconds]) -> list[float]:
    """Output tokens of each adapter within the phases' planned seconds."""
    sums: dict[str, float] = defaultdict(float)
    for phase in phases:
        for model, seconds in phase.items():
            sums[model] += fsum(seconds)
    return list(sums.values())


def least_share(phases: Iterable[Seconds]) -> float | None:
    """None without a window of ten seconds in which any of two adapters got a token."""
    return min((share for phase in phases for share in _shares(phase)), default=None)


def _shares(phase: Seconds) -> Iterator[float]:
    """The smallest share in each ten seconds, relative to an equal one."""
    if len(phase) < 2:
        return
    until = [list(accumulate(seconds, initial=0.0)) for seconds in phase.values()]
    for end in range(SHARE_SECONDS, len(until[0])):
        got = [sums[end] - sums[end - SHARE_SECONDS] for sums in until]
        if total := fsum(got):
            yield min(got) * len(got) / total


def _add(record: Record, began: float, seconds: list[float]) -> None:
    times = record.token_times
    part = record.output_tokens / max(len(times), 1)
    for time in times:
        if (second := int(time - began)) < len(seconds):
            seconds[second] += part

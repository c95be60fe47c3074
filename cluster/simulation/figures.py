"""What a run came to: hits, waits, loads and fairness, by phase and over time."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cluster.simulation.replica import Call
from cluster.simulation.run import PHASES, Outcome, Plan

BINS: Final = 10  # of a phase


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the calls that arrived within a time; seconds."""

    hit_rate: float  # calls that found their adapter resident, of all to adapters
    wait_p50: float  # until the first step, with the load
    wait_p99: float
    loads_per_second: float
    fairness: float  # Jain's index of the tokens that each replica was sent: 1 is even


def by_phase(plan: Plan, outcome: Outcome) -> list[Figures]:
    return [
        figures(outcome, plan.begin(phase), plan.begin(phase + 1), plan.names_up(phase))
        for phase in range(len(PHASES))
    ]


def over_time(plan: Plan, outcome: Outcome) -> Iterator[tuple[float, Figures]]:
    """The middle of each bin and its figures."""
    width = plan.phase_seconds / BINS
    for number in range(BINS * len(PHASES)):
        begin = plan.begin(0) + number * width
        up = plan.names_up(number // BINS)
        yield begin + width / 2, figures(outcome, begin, begin + width, up)


def figures(outcome: Outcome, begin: float, end: float, replicas: Sequence[str]) -> Figures:
    """Of the calls that arrived from `begin` on and before `end`; `replicas` were up then."""
    calls = outcome.calls[_at(outcome.calls, begin) : _at(outcome.calls, end)]
    named = [call for call in calls if call.adapter is not None]
    waits = sorted(call.started - call.arrived for call in calls)
    loads = bisect_left(outcome.loads, end) - bisect_left(outcome.loads, begin)
    return Figures(
        hit_rate=sum(call.was_resident for call in named) / max(1, len(named)),
        wait_p50=_quantile(waits, 0.5),
        wait_p99=_quantile(waits, 0.99),
        loads_per_second=loads / (end - begin),
        fairness=_jain(calls, replicas),
    )


def _at(calls: list[Call], when: float) -> int:
    return bisect_left(calls, when, key=lambda call: call.arrived)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


def _jain(calls: Sequence[Call], replicas: Sequence[str]) -> float:
    sent: defaultdict[str, float] = defaultdict(float)
    for call in calls:
        sent[call.replica] += call.tokens
    tokens = [sent[name] for name in replicas]
    return sum(tokens) ** 2 / (len(tokens) * sum(each * each for each in tokens) or 1)

"""Two servers that were asked the same: medians of both, and the ratio of round by round."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from statistics import median
from typing import Literal

import msgspec

from loadtest.judge.summary import Summary, metric_of
from loadtest.judge.verdict import Check
from loadtest.plan.scenario import Comparison, Metric, Scenario
from loadtest.statistics import Ratio, ratio_of

OURS: Literal["lorry"] = "lorry"
# What is shown of each phase; what a scenario asks for is shown besides.
SHOWN: tuple[Metric, ...] = (
    "output_tokens_per_second",
    "requests_per_second",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
    "e2e_p50_ms",
)


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One side's part of a round."""

    side: str
    number: int
    summary: Summary
    wrong: int
    judged: int
    failed: int
    apart: int = 0  # counts that it and its callers do not share


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What a side's processes hold, shared pages counted once, bytes."""

    side: str
    processes: int  # engines, each with a model of its own
    held: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of a phase on both sides; the ratio is ours / theirs."""

    peer: str
    phase: str | None  # none: all that are measured
    stream: str | None
    metric: Metric
    ours: float
    theirs: float
    ratio: Ratio

    @property
    def difference(self) -> float:
        return self.ours - self.theirs


def rows_of(rounds: Sequence[Round], scenario: Scenario) -> list[Row]:
    """Each peer's rows, phase by phase; a metric that a side has no data for is left out."""
    found = []
    for peer in dict.fromkeys(each.side for each in rounds if each.side != OURS):
        for phase, stream, metric in _wanted(scenario):
            pairs = list(_pairs(rounds, peer, metric, phase, stream))
            if pairs:
                ours, theirs = zip(*pairs, strict=True)
                found.append(
                    Row(
                        peer=peer,
                        phase=phase,
                        stream=stream,
                        metric=metric,
                        ours=median(ours),
                        theirs=median(theirs),
                        ratio=ratio_of(pairs),
                    )
                )
    return found


def checks_of(
    rows: Sequence[Row], rounds: Sequence[Round], scenario: Scenario, peers: Collection[str]
) -> list[Check]:
    """That no answer of ours was wrong, and what the scenario asks of these peers.

    Of one that did not come up or had no answer there is no data, which does not pass.
    """
    asked = [each for each in scenario.compare if each.peer in peers]
    ours = [each for each in rounds if each.side == OURS]
    wrong, failed = sum(r.wrong for r in ours), sum(r.failed for r in ours)
    apart = sum(r.apart for r in ours)
    return [
        Check(
            name="ours: no wrong answer, no failed call, no count apart from its callers'",
            wanted="0, 0 and 0",
            found=f"{wrong}, {failed} and {apart}",
            passed=not (wrong or failed or apart),
        ),
        *(_check(each, rows) for each in asked),
    ]


def _wanted(scenario: Scenario) -> list[tuple[str | None, str | None, Metric]]:
    measured = [phase.name for phase in scenario.phases if phase.measured]
    usual = [(phase, None, metric) for phase in measured for metric in SHOWN]
    asked = [(each.phase, each.stream, each.metric) for each in scenario.compare]
    return list(dict.fromkeys([*usual, *asked]))


def _pairs(
    rounds: Sequence[Round], peer: str, metric: Metric, phase: str | None, stream: str | None
) -> Iterator[tuple[float, float]]:
    """(ours, the peer's) of each round that both have."""
    found = {
        (each.side, each.number): metric_of(each.summary, metric, phase, stream) for each in rounds
    }
    for number in sorted({each.number for each in rounds}):
        ours, theirs = found.get((OURS, number)), found.get((peer, number))
        if ours is not None and theirs:
            yield ours, theirs


def _check(asked: Comparison, rows: Sequence[Row]) -> Check:
    place = (asked.peer, asked.phase, asked.stream, asked.metric)
    row = next((r for r in rows if (r.peer, r.phase, r.stream, r.metric) == place), None)
    name = " ".join(filter(None, (asked.metric, asked.phase, asked.stream, f"beside {asked.peer}")))
    wanted = " and ".join(_bounds(asked))
    if row is None:
        return Check(name=name, wanted=wanted, found="no data", passed=False)
    found = f"{row.ratio.median:.3f} ({row.ours:,.1f} / {row.theirs:,.1f})"
    return Check(name=name, wanted=wanted, found=found, passed=_holds(asked, row))


def _bounds(asked: Comparison) -> Iterator[str]:
    if asked.at_least is not None:
        yield f"ratio at least {asked.at_least:g}"
    if asked.at_most is not None:
        yield f"ratio at most {asked.at_most:g}"
    if asked.difference_at_most is not None:
        yield f"at most {asked.difference_at_most:g} more"


def _holds(asked: Comparison, row: Row) -> bool:
    ratio = row.ratio.median
    return (
        (asked.at_least is None or ratio >= asked.at_least)
        and (asked.at_most is None or ratio <= asked.at_most)
        and (asked.difference_at_most is None or row.difference <= asked.difference_at_most)
    )

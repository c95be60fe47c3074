"""Two servers under the same calls: medians of both, and ratios by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from statistics import median
from typing import Literal

import msgspec

from loadtest.judge.summary import Summary, metric_of
from loadtest.judge.verdict import Check
from loadtest.plan.scenario import Comparison, Metric, Scenario
from loadtest.records import Record
from loadtest.statistics import Ratio, ratio_of

OURS: Literal["lorry"] = "lorry"
# Peers with model files and a tokenizer of their own: that they do the same work is checked.
FOREIGN = ("llamacpp",)
# Shown for each phase, besides the metrics that the scenario compares.
SHOWN: tuple[Metric, ...] = (
    "output_tokens_per_second",
    "requests_per_second",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
    "e2e_p50_ms",
)


# Prompt and output tokens of answered calls, by phase, stream and number.
Lengths = dict[tuple[str, str, int], tuple[int, int]]


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One side's results in a round."""

    side: str
    number: int
    summary: Summary
    wrong: int
    judged: int
    failed: int
    apart: int = 0  # counts on which client and server differ
    lengths: Lengths = {}


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a side's processes in bytes, shared pages counted once, and how long it started."""

    side: str
    processes: int  # engines, each with a model of its own
    held: int
    start_seconds: float  # from its processes' start until they accept calls


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A metric on both sides; the ratio is ours / theirs."""

    peer: str
    phase: str | None  # None: all measured phases
    stream: str | None
    metric: Metric
    ours: float
    theirs: float
    ratio: Ratio

    @property
    def difference(self) -> float:
        return self.ours - self.theirs


def rows_of(rounds: Sequence[Round], scenario: Scenario) -> list[Row]:
    """Each peer's rows by phase, without metrics that lack data on a side."""
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
    """Checks of our own answers, and the scenario's comparisons with these peers.

    A comparison without data fails, such as with a peer that did not come up or never answered.
    Answers of peers that are FOREIGN are checked too.
    """
    bounds = [each for each in scenario.compare if each.peer in peers]
    ours = [each for each in rounds if each.side == OURS]
    wrong, failed = sum(r.wrong for r in ours), sum(r.failed for r in ours)
    apart = sum(r.apart for r in ours)
    return [
        Check(
            name="ours: no wrong answer, no failed call, no differing count",
            wanted="0, 0 and 0",
            found=f"{wrong}, {failed} and {apart}",
            passed=not (wrong or failed or apart),
        ),
        *(_check_work(rounds, peer) for peer in FOREIGN if peer in peers),
        *(_check(each, rows) for each in bounds),
    ]


def failures_of(rounds: Sequence[Round]) -> list[str]:
    """A note for each side with failed calls in measured phases: how many, by reason."""
    reasons: dict[str, Counter[str]] = {}
    for each in rounds:
        reasons.setdefault(each.side, Counter()).update(each.summary.overall.reasons)
    return [
        f"{side}: failed calls: {', '.join(f'{n} {reason}' for reason, n in found.most_common())}"
        for side, found in reasons.items()
        if found
    ]


def lengths_of(records: Iterable[Record]) -> Lengths:
    return {
        (each.phase, each.stream, each.number): (each.prompt_tokens, each.output_tokens)
        for each in records
        if each.outcome == "ok" and not each.structured
    }


def _check_work(rounds: Sequence[Round], peer: str) -> Check:
    """Whether a peer's ratios mean anything: right answers, and calls as long as ours."""
    theirs = [each for each in rounds if each.side == peer]
    ours = {each.number: each.lengths for each in rounds if each.side == OURS}
    wrong, failed = sum(each.wrong for each in theirs), sum(each.failed for each in theirs)
    differ = sum(
        lengths != ours.get(each.number, {}).get(call, lengths)
        for each in theirs
        for call, lengths in each.lengths.items()
    )
    return Check(
        name=f"{peer}: no wrong answer, no failed call, none with other token counts than ours",
        wanted="0, 0 and 0",
        found=f"{wrong}, {failed} and {differ}" if theirs else "no data",
        passed=bool(theirs) and not (wrong or failed or differ),
    )


def _wanted(scenario: Scenario) -> list[tuple[str | None, str | None, Metric]]:
    measured = [phase.name for phase in scenario.phases if phase.measured]
    usual = [(phase, None, metric) for phase in measured for metric in SHOWN]
    compared = [(each.phase, each.stream, each.metric) for each in scenario.compare]
    return list(dict.fromkeys([*usual, *compared]))


def _pairs(
    rounds: Sequence[Round], peer: str, metric: Metric, phase: str | None, stream: str | None
) -> Iterator[tuple[float, float]]:
    """(ours, theirs) of each round with data from both."""
    found = {
        (each.side, each.number): metric_of(each.summary, metric, phase, stream) for each in rounds
    }
    for number in sorted({each.number for each in rounds}):
        ours, theirs = found.get((OURS, number)), found.get((peer, number))
        if ours is not None and theirs:
            yield ours, theirs


def _check(bound: Comparison, rows: Sequence[Row]) -> Check:
    place = (bound.peer, bound.phase, bound.stream, bound.metric)
    row = next((r for r in rows if (r.peer, r.phase, r.stream, r.metric) == place), None)
    name = " ".join(filter(None, (bound.metric, bound.phase, bound.stream, f"beside {bound.peer}")))
    wanted = " and ".join(_bounds(bound))
    if row is None:
        return Check(name=name, wanted=wanted, found="no data", passed=False)
    found = f"{row.ratio.median:.3f} ({row.ours:,.1f} / {row.theirs:,.1f})"
    return Check(name=name, wanted=wanted, found=found, passed=_holds(bound, row))


def _bounds(bound: Comparison) -> Iterator[str]:
    if bound.at_least is not None:
        yield f"ratio at least {bound.at_least:g}"
    if bound.at_most is not None:
        yield f"ratio at most {bound.at_most:g}"
    if bound.difference_at_most is not None:
        yield f"at most {bound.difference_at_most:g} more"


def _holds(bound: Comparison, row: Row) -> bool:
    ratio = row.ratio.median
    return (
        (bound.at_least is None or ratio >= bound.at_least)
        and (bound.at_most is None or ratio <= bound.at_most)
        and (bound.difference_at_most is None or row.difference <= bound.difference_at_most)
    )

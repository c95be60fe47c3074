"""Measures rows, contest by contest: a contest's sides run together, a row's two take turns.

A side that fails takes its own rows with it and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from bench.results import Result, Spread, compare
from bench.rows import Entry, Row
from bench.sides import Sides
from bench.spec import SideSpec
from bench.truth import Verdict, judge
from bench.workload import BASE

Log = Callable[[str], None]
T = TypeVar("T")
Rates = tuple[dict[int, float], dict[int, float]]  # of a row's two entries, by round
WARM_SEED = 1_000_000  # of the warm-up: no round has it


def measure(rows: Sequence[Row], rounds: int, sides: Sides, log: Log) -> list[Result]:
    """All rows, those with a goal first; `log` gets a line for each stage."""
    results: list[Result] = []
    contests = list(dict.fromkeys(row.contest for row in rows))
    for number, contest in enumerate(contests):
        chosen = [row for row in rows if row.contest == contest]
        sides.keep(_specs(row for row in rows if row.contest in contests[number:]))
        log(f"{contest.name}: with {'; '.join(spec.label for spec in _specs(chosen))}")
        sides.start(_specs(chosen))
        log(f"{contest.name}: measuring")
        results += _RUN[contest.kind](sides, chosen, min(rounds, contest.most_rounds))
        for spec in _specs(chosen):
            if spec in sides.failures:
                log(f"{contest.name}: {spec.label} failed, {sides.failures[spec]}")
    return sorted(results, key=lambda result: (result.row.goal is None, rows.index(result.row)))


def rotate(elements: Sequence[T], number: int) -> list[T]:
    """Each round begins with the next element, so that none is always first or always last."""
    start = number % len(elements)
    return [*elements[start:], *elements[:start]]


def _speed(sides: Sides, rows: Sequence[Row], rounds: int) -> list[Result]:
    entries = _entries(rows)
    for entry in entries:
        sides.run(entry.side, entry.workload.warm_up(), WARM_SEED)
    rates: dict[Row, Rates] = {row: ({}, {}) for row in rows}
    for number in range(rounds):
        for row in rotate(rows, number):
            _race(sides, row, number, rates[row])
    return [_failed(sides, row) or compare(row, *rates[row]) for row in rows]


def _race(sides: Sides, row: Row, number: int, rates: Rates) -> None:
    """One round of a row; in odd rounds the second entry takes the first turn."""
    first = rotate(row.entries, number)
    outcomes = sides.race({entry.side: entry.workload for entry in first}, seed=number)
    for entry, rate in zip(row.entries, rates, strict=True):
        if entry.side in outcomes:
            rate[number] = outcomes[entry.side].rate


def _truth(sides: Sides, rows: Sequence[Row], rounds: int) -> list[Result]:
    results = []
    for row in rows:
        verdict = Verdict()
        for number in range(rounds):
            verdict += _judge_round(sides, row.over, number)
        results.append(_failed(sides, row) or _truth_result(row, verdict, rounds))
    return results


def _judge_round(sides: Sides, entry: Entry, seed: int) -> Verdict:
    verdict = Verdict()
    mixed = sides.run(entry.side, entry.workload, seed)
    requests = entry.workload.requests(1, seed)
    for number in (n for n, request in enumerate(requests) if request.adapter is BASE):
        alone = sides.run(entry.side, entry.workload, seed, only=[number], rivals=True)
        if mixed is None or alone is None or alone.rivals is None:
            return verdict
        verdict += judge(mixed.tokens[number], alone.tokens[0], alone.rivals[0])
    return verdict


def _truth_result(row: Row, verdict: Verdict, rounds: int) -> Result:
    right = verdict.equal + verdict.level
    share = right / verdict.compared
    note = f"{verdict.equal} equal, {verdict.level} part where two tokens are level"
    if verdict.wrong:
        note += f", {verdict.wrong} wrong"
    ratio = Spread(share, share, share)
    return Result(row, right, verdict.compared, ratio, rounds=rounds, note=note)


_RUN = {"speed": _speed, "truth": _truth}


def _failed(sides: Sides, row: Row) -> Result | None:
    for entry in row.entries:
        if entry.side in sides.failures:
            return Result(row, failure=f"{entry.side.label}: {sides.failures[entry.side]}")
    return None


def _entries(rows: Iterable[Row]) -> list[Entry]:
    return list(dict.fromkeys(entry for row in rows for entry in row.entries))


def _specs(rows: Iterable[Row]) -> list[SideSpec]:
    return list(dict.fromkeys(entry.side for entry in _entries(rows)))

"""Measures rows: contest by contest, each contest's sides up together and run in turn.

A side that fails takes its own rows with it and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.results import Result, Spread, compare, gib
from bench.rows import Entry, Row
from bench.sides import Sides
from bench.spec import SideSpec
from bench.truth import Verdict, judge
from bench.workload import BASE

Tell = Callable[[str], None]
WARM_SEED = 1_000_000  # no round's


def measure(rows: Sequence[Row], rounds: int, sides: Sides, tell: Tell) -> list[Result]:
    """All rows, those with a goal first; `tell` hears what is going on."""
    results: list[Result] = []
    contests = list(dict.fromkeys(row.contest for row in rows))
    for number, contest in enumerate(contests):
        chosen = [row for row in rows if row.contest == contest]
        sides.keep(_specs(row for row in rows if row.contest in contests[number:]))
        tell(f"{contest.name}: with {'; '.join(spec.label for spec in _specs(chosen))}")
        sides.start(_specs(chosen))
        tell(f"{contest.name}: measuring")
        results += _RUN[contest.kind](sides, chosen, min(rounds, contest.most_rounds))
        for spec in _specs(chosen):
            if spec in sides.failures:
                tell(f"{contest.name}: {spec.label} failed, {sides.failures[spec]}")
    return sorted(results, key=lambda result: (result.row.goal is None, rows.index(result.row)))


def rotate(entries: Sequence[Entry], number: int) -> list[Entry]:
    """Each round begins with another entry, so that none is always first or always last."""
    start = number % len(entries)
    return [*entries[start:], *entries[:start]]


def _speed(sides: Sides, rows: Sequence[Row], rounds: int) -> list[Result]:
    entries = _entries(rows)
    for entry in entries:
        sides.run(entry.side, entry.workload.warm_up(), WARM_SEED)
    rates: dict[Entry, dict[int, float]] = {entry: {} for entry in entries}
    for number in range(rounds):
        for entry in rotate(entries, number):
            outcome = sides.run(entry.side, entry.workload, seed=number)
            if outcome is not None:
                rates[entry][number] = outcome.rate
    return [_failed(sides, row) or compare(row, rates[row.over], rates[row.under]) for row in rows]


def _memory(sides: Sides, rows: Sequence[Row], rounds: int) -> list[Result]:
    """The peak of a side that started and ran its workload once."""
    peaks: dict[Entry, float] = {}
    held: dict[Entry, float] = {}
    for entry in _entries(rows):
        sides.run(entry.side, entry.workload.warm_up(), WARM_SEED)
        memory = sides.memory(entry.side)
        if memory is not None:
            peaks[entry], held[entry] = memory
    return [_failed(sides, row) or _memory_result(row, peaks, held) for row in rows]


def _memory_result(row: Row, peaks: dict[Entry, float], held: dict[Entry, float]) -> Result:
    over, under = row.entries
    peak = compare(row, {0: peaks[over]}, {0: peaks[under]})
    note = f"held after the run: {gib(held[over])} / {gib(held[under])}"
    return Result(row, peak.over, peak.under, peak.ratio, rounds=1, note=note)


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


_RUN = {"speed": _speed, "memory": _memory, "truth": _truth}


def _failed(sides: Sides, row: Row) -> Result | None:
    for entry in row.entries:
        if entry.side in sides.failures:
            return Result(row, failure=f"{entry.side.label}: {sides.failures[entry.side]}")
    return None


def _entries(rows: Iterable[Row]) -> list[Entry]:
    return list(dict.fromkeys(entry for row in rows for entry in row.entries))


def _specs(rows: Iterable[Row]) -> list[SideSpec]:
    return list(dict.fromkeys(entry.side for entry in _entries(rows)))

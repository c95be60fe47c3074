"""The report of a comparison: a page, a terminal table of ratios, checks and memory, JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.judge.comparison import OURS, Memory, Round, Row
from loadtest.judge.verdict import Check
from loadtest.report.figures import in_column
from loadtest.report.files import describe_machine, render, write_file

_GIB = 1024**3


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The results of `compare`. `notes`: peers left out and why, how many processes fit."""

    scenario: str
    date: str
    plans: list[str]  # digests of the rounds' plans
    rounds: int
    sides: dict[str, str]  # descriptions by side
    rows: list[Row]
    checks: list[Check]
    answers: dict[str, tuple[int, int, int]]  # wrong, judged, failed, by side
    memory: list[Memory]
    notes: list[str]

    @property
    def passed(self) -> bool:
        return all(check.passed or check.advisory for check in self.checks)


def answers_of(rounds: Sequence[Round]) -> dict[str, tuple[int, int, int]]:
    return {
        side: (
            sum(each.wrong for each in rounds if each.side == side),
            sum(each.judged for each in rounds if each.side == side),
            sum(each.failed for each in rounds if each.side == side),
        )
        for side in dict.fromkeys(each.side for each in rounds)
    }


def write(comparison: Comparison, folder: Path) -> None:
    """Write compare.html and compare.json. Raises OutUnwritable."""
    document = msgspec.to_builtins(comparison) | {
        "passed": comparison.passed,
        "machine": describe_machine(),
    }
    text = msgspec.json.format(msgspec.json.encode(document))
    write_file(folder / "compare.json", [text, b"\n"])
    page = render("compare.html.j2", comparison=comparison, ours=OURS, machine=describe_machine())
    write_file(folder / "compare.html", [page.encode()])


def table(comparison: Comparison) -> Group:
    return Group(*_parts(comparison))


def _parts(comparison: Comparison) -> Iterator[RenderableType]:
    yield Text(f"{comparison.scenario}: {comparison.rounds} rounds, all sides in each", "bold")
    yield _rows(comparison.rows)
    yield _answers(comparison)
    for check in comparison.checks:
        mark = Text("✓ ", "green") if check.passed else Text("✗ ", "bold red")
        yield mark + Text(f"{check.name}: wanted {check.wanted}, found {check.found}")
    for line in comparison.notes:
        yield Text(f"note: {line}", "dim")


def _rows(rows: Sequence[Row]) -> Table:
    found = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("peer", "phase", "metric", "ours", "peer's", "ours / peer's", "rounds' range"):
        found.add_column(name, justify="left" if name in ("peer", "phase", "metric") else "right")
    for row in rows:
        place = " ".join(filter(None, (row.phase or "all", row.stream)))
        span = f"{row.ratio.low:.2f} - {row.ratio.high:.2f}"
        cells = (in_column(row.ours), in_column(row.theirs), f"{row.ratio.median:.3f}", span)
        found.add_row(row.peer, place, row.metric, *cells)
    return found


def _answers(comparison: Comparison) -> Table:
    found = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("side", "wrong", "judged", "failed", "processes", "memory GiB"):
        found.add_column(name, justify="left" if name == "side" else "right")
    held = {each.side: each for each in comparison.memory}
    for side, counts in comparison.answers.items():
        memory = held.get(side)
        size = (str(memory.processes), f"{memory.held / _GIB:.2f}") if memory else ("-", "-")
        found.add_row(side, *map(str, counts), *size)
    return found

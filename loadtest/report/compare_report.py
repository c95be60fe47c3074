"""The report of a comparison: a page, a terminal table of ratios, checks and memory, JSON, and
its main figures as markdown, for a page of documentation.
"""

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
from loadtest.plan.scenario import Metric
from loadtest.report.figures import in_column
from loadtest.report.files import describe_machine, render, write_file

_GIB = 1024**3
# In the markdown: speed, and what one caller feels.
_MAIN: tuple[Metric, ...] = ("output_tokens_per_second", "ttft_p50_ms", "itl_p50_ms")


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
    """Write compare.html, compare.json and compare.md. Raises OutUnwritable."""
    document = msgspec.to_builtins(comparison) | {
        "passed": comparison.passed,
        "machine": describe_machine(),
    }
    text = msgspec.json.format(msgspec.json.encode(document))
    write_file(folder / "compare.json", [text, b"\n"])
    page = render("compare.html.j2", comparison=comparison, ours=OURS, machine=describe_machine())
    write_file(folder / "compare.html", [page.encode()])
    write_file(folder / "compare.md", [markdown(comparison).encode()])


def markdown(comparison: Comparison) -> str:
    """The speed by phase, and what each side takes to give it."""
    rows = [row for row in comparison.rows if row.metric in _MAIN and row.stream is None]
    lines = [
        f"{describe_machine()}; {comparison.date[:10]}, {comparison.rounds} rounds, "
        "all sides in each: medians, and the median of the rounds' ratios (lowest-highest).",
        "",
        "| peer | phase | metric | ours | peer's | ours / peer's |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.peer} | {row.phase or 'all'} | {row.metric} | {in_column(row.ours)} "
            f"| {in_column(row.theirs)} | {row.ratio.median:.2f} "
            f"({row.ratio.low:.2f}-{row.ratio.high:.2f}) |"
            for row in rows
        ),
        "",
        "| side | memory GiB | start s | wrong / judged / failed answers |",
        "|---|---|---|---|",
        *(
            f"| {each.side} | {each.held / _GIB:.2f} | {each.start_seconds:.1f} "
            f"| {' / '.join(map(str, comparison.answers.get(each.side, ())))} |"
            for each in comparison.memory
        ),
    ]
    return "\n".join([*lines, ""])


def table(comparison: Comparison) -> Group:
    return Group(*_parts(comparison))


def _parts(comparison: Comparison) -> Iterator[RenderableType]:
    yield Text(f"{comparison.scenario}: {comparison.rounds} rounds, all sides in each", "bold")
    yield Text(describe_machine(), "dim")
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
    for name in ("side", "wrong", "judged", "failed", "processes", "memory GiB", "start s"):
        found.add_column(name, justify="left" if name == "side" else "right")
    held = {each.side: each for each in comparison.memory}
    for side, counts in comparison.answers.items():
        memory = held.get(side)
        found.add_row(side, *map(str, counts), *_size(memory))
    return found


def _size(memory: Memory | None) -> tuple[str, str, str]:
    if memory is None:
        return "-", "-", "-"
    return str(memory.processes), f"{memory.held / _GIB:.2f}", f"{memory.start_seconds:.1f}"

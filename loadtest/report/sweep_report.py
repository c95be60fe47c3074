"""The report of a sweep: a page with the chart and its knee, a terminal table, JSON."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from loadtest.judge.knee import Sweep
from loadtest.report import charts
from loadtest.report.figures import in_column
from loadtest.report.files import describe_machine, render, write_file


def write(sweep: Sweep, folder: Path) -> None:
    """Write sweep.html and sweep.json. Raises OutUnwritable."""
    document = msgspec.to_builtins(sweep) | {"machine": describe_machine()}
    write_file(folder / "sweep.json", [msgspec.json.format(msgspec.json.encode(document)), b"\n"])
    chart = charts.sweep(
        "Answers per second and p99 time to first token, by the rate offered",
        "calls/s",
        sweep.points,
        sweep.knee,
    )
    page = render(
        "sweep.html.j2",
        sweep=sweep,
        chart=chart,
        plotly=charts.plotly_script(),
        words=verdict(sweep),
        faults=_faults(sweep),
        machine=describe_machine(),
    )
    write_file(folder / "sweep.html", [page.encode()])


def verdict(sweep: Sweep) -> str:
    if sweep.knee is None:
        return "It does not keep up even at the lowest rate: sweep lower ones (--rates)."
    point = sweep.points[sweep.knee]
    found = (
        f"It keeps up with {point.offered:g} calls/s ({point.tokens:,.0f} output tokens/s) with a "
        f"p99 TTFT of {point.ttft_p99_ms or 0:,.0f} ms"
    )
    return f"{found}." if sweep.knee + 1 < len(sweep.points) else f"{found}; perhaps with more."


def table(sweep: Sweep) -> Group:
    rows = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("offered/s", "answered/s", "tokens/s", "p99 TTFT ms", "late", "failed", ""):
        rows.add_column(name, justify="right")
    for number, point in enumerate(sweep.points):
        figures = (point.offered, point.reached, point.tokens, point.ttft_p99_ms)
        mark = "knee" if number == sweep.knee else ""
        rows.add_row(*map(in_column, figures), f"{point.late:,}", f"{point.failed:,}", mark)
    faults = [Text(each, style="bold red") for each in _faults(sweep)]
    title = Text(f"{sweep.scenario}, {sweep.stream}, against {sweep.target}", style="bold")
    return Group(title, rows, Text(verdict(sweep)), *faults)


def _faults(sweep: Sweep) -> list[str]:
    counts = ((sweep.wrong, "wrong answers"), (sweep.apart, "counts differ from the server's"))
    return [f"{count} {what}" for count, what in counts if count]

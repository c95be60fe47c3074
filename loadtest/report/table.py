"""A run on the terminal: figures by phase and adapter, checks, faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.judge.summary import Stats, Summary
from loadtest.judge.trust import distrust, notes
from loadtest.judge.verdict import Check, Verdict
from loadtest.records import Run
from loadtest.report.figures import MISSING, figure, in_column, percent
from loadtest.statistics import Latency

SHOWN = 5  # wrong answers and differing counts; the report shows more
ADAPTERS = 10  # half of them the most requested, half the slowest of the others
_PLAIN: Any = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
_COLUMNS = (
    "calls",
    "failed",
    "req/s",
    "tok/s",
    "TTFT\np50/p99",
    "ITL\np50/p99",
    "TPOT\np50",
    "E2E\np99",
    "goodput",
)


def terminal_report(run: Run, summary: Summary, verdict: Verdict) -> Group:
    return Group(*_parts(run, summary, verdict))


def _parts(run: Run, summary: Summary, verdict: Verdict) -> Iterator[RenderableType]:
    yield Text(f"{run.scenario} against {run.target}", style="bold")
    yield _phases(run, summary)
    if summary.adapters:
        yield _adapters(summary)
    yield _checks(verdict)
    for phase, stats in summary.phases.items():
        if stats.failed:
            reasons = ", ".join(f"{count} {reason}" for reason, count in stats.reasons.items())
            yield Text(f"failed calls in {phase}: {reasons}", style="red")
    for wrong in run.wrong[:SHOWN]:
        call = f"{wrong.phase}/{wrong.stream}/{wrong.number}"
        yield Text(f"wrong answer: {call} requested {wrong.model}: {wrong.message}", style="red")
    for each in run.agreement.disagreements[:SHOWN]:
        words = f"client {figure(each.client)}, server {figure(each.server)}"
        yield Text(f"counts differ: {each.what}: {words}", style="red")
    for line in run.agreement.left_out:
        yield Text(f"not compared: {line}", style="dim")
    for line in distrust(run, summary):
        yield Text(f"not to be trusted: {line}", style="yellow")
    for line in notes(summary):
        yield Text(f"note: {line}", style="dim")
    yield Text("PASSED", style="bold green") if verdict.passed else Text("FAILED", style="bold red")


def _phases(run: Run, summary: Summary) -> Table:
    all_measured = all(window.measured for window in run.windows)
    table = _table("phase", f"latencies in ms{'' if all_measured else '; * not measured'}")
    for window in run.windows:
        name = window.phase if window.measured else f"{window.phase}*"
        table.add_row(Text(name), *_cells(summary.phases[window.phase]))
        streams = summary.phase_streams[window.phase]
        for stream, stats in streams.items() if len(streams) > 1 else ():
            table.add_row(Text(f"  {stream}", style="dim"), *_cells(stats))
    if len(run.windows) > 1:
        table.add_section()
        table.add_row("all measured", *_cells(summary.overall))
    return table


def _adapters(summary: Summary) -> Table:
    shown = _picked(summary)
    jain = "" if summary.overall.jain is None else f"; fairness (Jain) {summary.overall.jain:.3f}"
    many = len(summary.adapters)
    which = "" if len(shown) == many else f"{len(shown)} of {many}: most requested, and slowest"
    table = _table("model", f"{which}{jain}".removeprefix("; "))
    if summary.base is not None:
        table.add_row("base", *_cells(summary.base))
    for name in shown:
        table.add_row(Text(name), *_cells(summary.adapters[name]))
    return table


def _picked(summary: Summary) -> list[str]:
    """The shown adapters, ordered by number of calls."""
    names = list(summary.adapters)
    rest = sorted(names[ADAPTERS // 2 :], key=lambda name: -_slowness(summary.adapters[name]))
    picked = {*names[: ADAPTERS // 2], *rest[: ADAPTERS // 2]}
    return [name for name in names if name in picked]


def _slowness(stats: Stats) -> float:
    """p99 latency in ms; infinite for an adapter that never answered."""
    latency = stats.ttft or stats.e2e
    return latency.p99 if latency else float("inf")


def _checks(verdict: Verdict) -> Table:
    table = Table("", "check", "wanted", "found", **_PLAIN)
    for check in verdict.checks:
        name = f"{check.name} (advisory)" if check.advisory else check.name
        words = (name, check.wanted, check.found)
        table.add_row(_mark(check), *(Text(each) for each in words))
    return table


def _mark(check: Check) -> Text:
    if check.passed:
        return Text("✓", style="green")
    return Text("✗", style="yellow" if check.advisory else "bold red")


def _table(first: str, caption: str) -> Table:
    table = Table(caption=caption or None, caption_justify="left", **_PLAIN)
    table.add_column(first, overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(stats: Stats) -> list[Text]:
    figures = (
        in_column(stats.requests_per_second),
        in_column(stats.output_tokens_per_second),
        _both(stats.ttft),
        _both(stats.itl),
        in_column(None if stats.tpot is None else stats.tpot.p50),
        in_column(None if stats.e2e is None else stats.e2e.p99),
        percent(stats.goodput_share),
    )
    failed = Text(f"{stats.failed:,}", style="red" if stats.failed else "")
    return [Text(f"{stats.requests:,}"), failed, *map(Text, figures)]


def _both(latency: Latency | None) -> str:
    return MISSING if latency is None else f"{in_column(latency.p50)}/{in_column(latency.p99)}"

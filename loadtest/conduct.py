"""What the commands do: run, write the reports, print the tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loadtest import compare as sides
from loadtest.drive.progress import Progress
from loadtest.judge.summary import summarize
from loadtest.judge.verdict import judge
from loadtest.plan.scenario import Scenario
from loadtest.report import compare_report as comparison_report
from loadtest.report import run_report as report
from loadtest.report import sweep_report
from loadtest.report.table import terminal_report
from loadtest.results import Run
from loadtest.run import Setting, run_scenario
from loadtest.servers.testbed import Options, opened
from loadtest.sweep import Sweep, knee_of, measuring_capacity, points_of, rates_of, sweeping


async def run_once(
    scenario: Scenario,
    options: Options,
    out: Path,
    records: Path | None,
    console: Console,
    as_json: bool,
) -> bool:
    """Whether it passed.

    Raises:
        ServerFailed: the tool's own server ended by itself; the reports are there all the same.
    """
    async with opened(scenario, options) as setting:
        done = await _observed(scenario, setting)
        ended = setting.ended()
    summary = summarize(done, scenario)
    verdict = judge(done, summary, scenario)
    console.print(terminal_report(done, summary, verdict))
    report.write_html(done, summary, verdict, out / "report.html")
    report.write_json(done, summary, verdict, out / "report.json")
    if records is not None:
        report.write_records(done, records)
    _show(console, out / "report.html", out / "report.json", as_json)
    if ended is not None:
        raise ended
    return verdict.passed


async def _observed(scenario: Scenario, setting: Setting) -> Run:
    with Progress(Console(stderr=True)) as progress:
        return await run_scenario(scenario, setting, progress)


async def run_sweep(
    scenario: Scenario,
    stream: str,
    rates: Sequence[float],
    seconds: float,
    options: Options,
    out: Path,
    console: Console,
    as_json: bool,
) -> bool:
    """The chart that people look at first: what is answered at rising rates. Whether all is true.

    A server that does not keep up has not failed; one that answers or counts wrongly has.
    """
    runs: list[Run] = []
    async with opened(scenario, options) as setting:
        if not rates:
            capacity = measuring_capacity(scenario, stream, seconds)
            runs.append(await _observed(capacity, setting))
            rates = rates_of(summarize(runs[-1], capacity))
        swept = sweeping(scenario, stream, rates, seconds)
        done = await _observed(swept, setting)
    runs.append(done)
    points = points_of(done, summarize(done, swept), rates)
    found = Sweep(
        scenario=scenario.name,
        stream=stream,
        target=done.target,
        date=done.date,
        plan=done.plan,
        points=points,
        knee=knee_of(points),
        wrong=sum(len(each.wrong) for each in runs),
        apart=sum(len(each.agreement.disagreements) for each in runs),
    )
    console.print(sweep_report.table(found))
    sweep_report.write(found, out)
    _show(console, out / "sweep.html", out / "sweep.json", as_json)
    return found.passed


async def run_sides(
    scenario: Scenario,
    base: Path,
    peers: Sequence[str],
    rounds: int,
    processes: int,
    home: Path,
    out: Path,
    console: Console,
    as_json: bool,
) -> bool:
    """Whether all held that the scenario asks of a comparison."""
    order = sides.Order(
        scenario=scenario,
        base=base,
        peers=sides.check_peers(peers, scenario),
        rounds=rounds,
        processes=processes,
        home=home,
    )
    told = Console(stderr=True, highlight=False)
    with Progress(told) as progress:
        found = await sides.compare(order, told.print, progress)
    console.print(comparison_report.table(found))
    comparison_report.write(found, out)
    _show(console, out / "compare.html", out / "compare.json", as_json)
    return found.passed


def _show(console: Console, page: Path, document: Path, as_json: bool) -> None:
    """Where more is. The table has been printed before: minutes of work outlive a full disk."""
    console.print(f"more in {page}", soft_wrap=True, markup=False)
    if as_json:
        sys.stdout.write(document.read_text())

"""`run`: one scenario against one server, phase by phase, with actions during the traffic."""

from __future__ import annotations

import asyncio
import datetime
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Console

from loadtest.drive import workers
from loadtest.drive.actions import Actions, check
from loadtest.drive.client import Target, open_session
from loadtest.drive.discovery import Models, discover
from loadtest.drive.progress import Progress
from loadtest.errors import TargetUnfit
from loadtest.judge.reconcile import metrics_agree, settle, were_powered
from loadtest.judge.scrape import Sample, scrape
from loadtest.judge.spans import spans_agree
from loadtest.judge.summary import summarize
from loadtest.judge.truth import Liveness, Truth
from loadtest.judge.verdict import judge
from loadtest.plan import plan
from loadtest.plan.scenario import Phase, Scenario
from loadtest.plan.traffic import Closed
from loadtest.records import Agreement, Disagreement, Done, Record, Run, Window
from loadtest.report import run_report
from loadtest.report.files import show_paths
from loadtest.report.table import terminal_report
from loadtest.servers.testbed import Options, Setting, opened


async def run(
    scenario: Scenario,
    options: Options,
    out: Path,
    records: Path | None,
    console: Console,
    as_json: bool,
) -> bool:
    """Run the scenario, print its table and write its reports; returns whether it passed.

    The table is printed before any file is written, so that a full disk does not lose it.

    Raises:
        ServerFailed: the server that the tool started ended by itself; the reports are written all
            the same.
    """
    async with opened(scenario, options) as setting:
        done = await run_with_progress(scenario, setting)
        ended = setting.ended()
    summary = summarize(done, scenario)
    verdict = judge(done, summary, scenario)
    console.print(terminal_report(done, summary, verdict))
    run_report.write_html(done, summary, verdict, out / "report.html")
    run_report.write_json(done, summary, verdict, out / "report.json")
    if records is not None:
        run_report.write_records(done, records)
    show_paths(console, out / "report.html", out / "report.json", as_json)
    if ended is not None:
        raise ended
    return verdict.passed


async def run_with_progress(scenario: Scenario, setting: Setting) -> Run:
    with Progress(Console(stderr=True)) as progress:
        return await run_scenario(scenario, setting, progress)


async def run_scenario(scenario: Scenario, setting: Setting, progress: Progress) -> Run:
    """Run all phases, judge the answers and compare the counts.

    Raises:
        OptionsClash: the scenario's actions need an option that is missing.
        TargetUnfit: the server can't be reached, lacks adapters, or serves unmarked ones.
        WorkerFailed: a process of the load generator ended.
    """
    manifest = setting.manifest
    check(scenario, setting.admin_token, setting.switch is not None, manifest is not None)
    planned = {phase.name: _plan(scenario, phase) for phase in scenario.phases}
    target = setting.target
    async with open_session() as session:
        models = setting.models or await discover(
            session, target.url, target.headers, wanted=setting.adapters, needed=scenario.adapters
        )
        names = models.adapters[: scenario.adapters]
        if manifest is not None:
            manifest.check_has(names)
        before = await _scrape(session, target)
        actions = Actions(
            *(session, target.url, setting.admin_token, names),
            *(manifest.folder if manifest else None, setting.switch),
        )
        async with workers.started(
            scenario, names, models.base, target, setting.processes
        ) as generator:
            course = _Course(scenario, generator, actions, progress)
            for phase in scenario.phases:
                await course.run(phase, planned[phase.name])
        agreement = await _reconcile(session, setting, course, before, models)
    truth = Truth(
        models,
        manifest.marker if manifest else _unmarked,
        Liveness(models.stable, course.done),
    )
    judged, wrong = truth.judge_all(course.records)
    return Run(
        scenario=scenario.name,
        about=scenario.about,
        seed=scenario.seed,
        plan=plan.digest(scenario),
        target=setting.description,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        windows=course.windows,
        records=course.records,
        client=generator.client(),
        actions=course.done,
        wrong=wrong,
        judged=judged,
        agreement=agreement,
    )


def _unmarked(name: str, version: int) -> None:
    return None


@dataclass
class _Course:
    """A run in progress: the results so far."""

    scenario: Scenario
    workers: workers.Workers
    actions: Actions
    progress: Progress
    windows: list[Window] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)

    async def run(self, phase: Phase, planned: dict[str, int | None]) -> None:
        self.progress.begin(phase.name, phase.seconds)
        actions: list[asyncio.Task[list[Done]]] = []

        def begin(at: float) -> None:
            actions.append(asyncio.create_task(self.actions.run(phase, at)))

        try:
            began, ended = await self.workers.run_phase(
                phase, self._take, self.progress.tick, begin
            )
            self.done += await actions[0]
        finally:
            for task in actions:
                task.cancel()
        self.windows.append(
            Window(
                phase=phase.name,
                measured=phase.measured,
                outage=phase.outage,
                began=began,
                seconds=phase.seconds,
                ended=ended,
                planned=planned,
            )
        )

    def _take(self, record: Record) -> None:
        self.records.append(record)
        self.progress.record(record)


def _plan(scenario: Scenario, phase: Phase) -> dict[str, int | None]:
    """Number of planned calls by stream; None for a closed loop."""
    calls = Counter(call.stream for call in plan.plan_phase(scenario, phase))
    return {
        stream: None if isinstance(arrival, Closed) else calls[stream]
        for stream, arrival in phase.traffic.items()
    }


async def _scrape(session: aiohttp.ClientSession, target: Target) -> Sample | None:
    """None if the server has no readable metrics: then nothing is compared."""
    try:
        return await scrape(session, target.url, target.headers)
    except TargetUnfit:
        return None


def _unexplained(counts: Agreement, calls: int) -> Agreement:
    """A disagreement: Lorry has metrics, and without a restart by an action they can't be lost."""
    what = "; ".join(counts.left_out) or "metrics: nothing was compared"
    apart = Disagreement(what=what, client=calls, server=0)
    return Agreement(disagreements=(apart,))


async def _reconcile(
    session: aiohttp.ClientSession,
    setting: Setting,
    course: _Course,
    before: Sample | None,
    models: Models,
) -> Agreement:
    """Compare the client's counts with the server's metrics, and with its spans if received."""
    target, records = setting.target, course.records
    if before is None:
        counts = Agreement(left_out=("the server has no readable /metrics",))
    else:
        counts = await settle(
            lambda: scrape(session, target.url, target.headers),
            lambda after: metrics_agree(records, before, after, models.is_lorry, course.done),
        )
    if models.is_lorry and not counts.compared and not were_powered(course.done):
        counts = _unexplained(counts, len(records))
    if setting.spans is None:
        return counts
    await setting.spans.wait_for({record.trace_id for record in records if record.trace_id})
    spans = spans_agree(records, setting.spans.spans)
    return Agreement(
        compared=counts.compared + spans.compared,
        disagreements=counts.disagreements + spans.disagreements,
        left_out=counts.left_out + spans.left_out,
    )

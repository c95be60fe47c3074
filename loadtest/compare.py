"""`compare`: all sides up, all but one frozen, the same plan against each in turn."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rich.console import Console

from loadtest.drive.progress import Progress
from loadtest.errors import OptionsClash, ServerFailed, TargetUnfit
from loadtest.judge.comparison import OURS, Memory, Round, checks_of, rows_of
from loadtest.judge.summary import summarize
from loadtest.markers.manifest import Manifest
from loadtest.plan import plan
from loadtest.plan.scenario import Scenario
from loadtest.report import compare_report
from loadtest.report.compare_report import Comparison, answers_of
from loadtest.report.files import show_paths
from loadtest.run import run_scenario
from loadtest.servers.command_lines import Kind
from loadtest.servers.serving import Served
from loadtest.servers.testbed import claimed, marked_for, setting_of, setup_of, started

PEERS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != OURS)
WORDS = {
    "lorry": "this server",
    "stock": "vLLM's own server, as it comes",
    "stock-tuned": "vLLM's own server with this one's process and thread settings",
    "stock-base": "the same without LoRA",
    "merged": "one process with a merged model for each adapter",
    "peft": "transformers with PEFT, mixed batches",
}


def check_peers(names: Sequence[str], scenario: Scenario) -> list[Kind]:
    """Raises OptionsClash: an unknown peer, or one that can't do the scenario."""
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise OptionsClash(f"no peer {unknown[0]!r}: there are {', '.join(PEERS)}")
    if any(phase.actions for phase in scenario.phases):
        raise OptionsClash(f"{scenario.name} has actions, which peers can't do: choose another")
    asks_base = any(s.adapters is None or s.base_share for s in scenario.streams.values())
    if "merged" in names and asks_base:
        raise OptionsClash(f"{scenario.name} calls the base, which no merged model is")
    if "stock-base" in names and scenario.adapters:
        raise OptionsClash(f"{scenario.name} calls adapters, which stock-base has none of")
    return [kind for kind in PEERS if kind in names]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What `compare` runs."""

    scenario: Scenario
    base: Path
    peers: Sequence[Kind]
    rounds: int
    processes: int
    home: Path  # for marked adapters, stores, merged models and logs


async def compare(order: Order, out: Path, console: Console, as_json: bool) -> bool:
    """Run the comparison and write its report; returns whether all checks hold."""
    stderr = Console(stderr=True, highlight=False)
    with Progress(stderr) as progress:
        found = await run_rounds(order, stderr.print, progress)
    console.print(compare_report.table(found))
    compare_report.write(found, out)
    show_paths(console, out / "compare.html", out / "compare.json", as_json)
    return found.passed


async def run_rounds(order: Order, tell: Callable[[str], None], progress: Progress) -> Comparison:
    """Start all sides and run all rounds.

    Raises:
        ServerFailed, TargetUnfit: ours did not come up, or went away. A peer that does is left out
            from then on, and that is told.
    """
    scenario = order.scenario
    rounds: list[Round] = []
    notes: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(claimed(order.home))
        manifest = marked_for(scenario, order.base, order.home)
        sides = await _start(order, manifest, stack, notes, tell)
        for number in range(order.rounds):
            asked = plan.reseeded(scenario, number)
            # Who goes first takes turns.
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                tell(f"round {number + 1} of {order.rounds}: {side.kind}")
                try:
                    rounds.append(await _run(side, number, asked, manifest, order, progress))
                except TargetUnfit as error:
                    if side.kind == OURS:
                        raise
                    notes.append(f"left out: {side.kind}, from round {number + 1} on: {error}")
                    sides.remove(side)
        memory = [Memory(side=s.kind, processes=len(s.launches), held=s.held_bytes) for s in sides]
    rows = rows_of(rounds, scenario)
    return Comparison(
        scenario=scenario.name,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        plans=[plan.digest(plan.reseeded(scenario, number)) for number in range(order.rounds)],
        rounds=order.rounds,
        sides={side.kind: WORDS[side.kind] for side in sides},
        rows=rows,
        checks=checks_of(rows, rounds, scenario, order.peers),
        answers=answers_of(rounds),
        memory=memory,
        notes=notes,
    )


async def _start(
    order: Order,
    manifest: Manifest | None,
    stack: contextlib.AsyncExitStack,
    notes: list[str],
    tell: Callable[[str], None],
) -> list[Served]:
    sides: list[Served] = []
    for kind in (OURS, *order.peers):
        setup = setup_of(order.scenario, order.base, manifest, order.home / f"side-{kind}", {})
        try:
            side = await stack.enter_async_context(started(kind, setup))
        except ServerFailed as error:
            if kind == OURS:
                raise
            notes.append(f"left out: {kind}: {error}")
            continue
        tell(f"{kind} is up after {side.start_seconds:.0f} s")
        if side.fits is not None:
            notes.append(_fits(side, order.scenario.adapters))
            if len(side.urls) < order.scenario.adapters:
                side.stop()
                continue
        side.freeze()
        sides.append(side)
    return sides


def _fits(side: Served, wanted: int) -> str:
    each = side.held_bytes / len(side.launches) / 1024**3
    return (
        f"merged: {len(side.urls)} of {wanted} models run; a process with a merged model holds "
        f"{each:.2f} GiB, and {side.fits} of them would fit here"
    )


async def _run(
    side: Served,
    number: int,
    asked: Scenario,
    manifest: Manifest | None,
    order: Order,
    progress: Progress,
) -> Round:
    setting = setting_of(asked, side, manifest, order.processes)
    with _awake(side):
        done = await run_scenario(asked, setting, progress)
    return Round(
        side=side.kind,
        number=number,
        summary=summarize(done, asked),
        wrong=len(done.wrong),
        judged=done.judged,
        failed=sum(record.outcome == "failed" for record in done.records),
        apart=len(done.agreement.disagreements),
    )


@contextlib.contextmanager
def _awake(side: Served) -> Iterator[None]:
    side.thaw()
    try:
        yield
    finally:
        side.freeze()

"""`compare`: start all sides, freeze all but one, run the same plan against each in turn."""

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
from loadtest.judge.comparison import (
    OURS,
    Memory,
    Round,
    checks_of,
    failures_of,
    lengths_of,
    rows_of,
)
from loadtest.judge.summary import summarize
from loadtest.markers.manifest import Manifest
from loadtest.plan import plan
from loadtest.plan.scenario import Scenario
from loadtest.report import compare_report
from loadtest.report.compare_report import Comparison, answers_of
from loadtest.report.files import show_paths
from loadtest.run import run_scenario
from loadtest.servers.command_lines import Kind
from loadtest.servers.llama_cpp import LlamaCpp
from loadtest.servers.serving import Served
from loadtest.servers.testbed import claimed, marked_for, setting_of, setup_of, started

PEERS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != OURS)
WORDS = {
    "lorry": "this server",
    "plain": "this server with --admission plain: calls in the order of their arrival",
    "limited": "this server, called with a key that has limits of each kind",
    "stock": "vLLM's own server, with its defaults",
    "stock-tuned": "vLLM's own server with this server's process and thread settings",
    "stock-base": "stock-tuned without LoRA",
    "merged": "a merged model in a process of its own for each adapter",
    "peft": "transformers with PEFT, mixed batches",
    "llamacpp": "llama.cpp's server on the GGUF of the base, all adapters loaded",
}


def check_peers(names: Sequence[str], scenario: Scenario) -> list[Kind]:
    """The peers in the order of PEERS; raises OptionsClash for one that can't run the scenario."""
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise OptionsClash(f"no peer {unknown[0]!r}: there are {', '.join(PEERS)}")
    if any(phase.actions for phase in scenario.phases):
        raise OptionsClash(f"{scenario.name} has actions, which no peer supports: choose another")
    asks_base = any(s.adapters is None or s.base_share for s in scenario.streams.values())
    if "merged" in names and asks_base:
        raise OptionsClash(f"{scenario.name} calls the base, which merged models don't serve")
    if "stock-base" in names and scenario.adapters:
        raise OptionsClash(f"{scenario.name} calls adapters, which stock-base doesn't serve")
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
    llama_cpp: LlamaCpp | None = None  # for the peer llamacpp


async def compare(order: Order, out: Path, console: Console, as_json: bool) -> bool:
    """Run the comparison and write its report; returns whether all checks hold."""
    stderr = Console(stderr=True, highlight=False)
    with Progress(stderr) as progress:
        found = await run_rounds(order, stderr.print, progress)
    console.print(compare_report.table(found))
    compare_report.write(found, out)
    show_paths(console, out / "compare.html", out / "compare.json", as_json)
    return found.passed


async def run_rounds(order: Order, log: Callable[[str], None], progress: Progress) -> Comparison:
    """Start all sides and run all rounds.

    A peer that does not come up or goes away is left out from then on, with a note.

    Raises:
        ServerFailed, TargetUnfit: our own server did not come up, or went away.
    """
    scenario = order.scenario
    rounds: list[Round] = []
    notes: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(claimed(order.home))
        manifest = marked_for(scenario, order.base, order.home)
        sides = await _start(order, manifest, stack, notes, log)
        for number in range(order.rounds):
            reseeded = plan.reseeded(scenario, number)
            # The sides take turns in going first.
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                log(f"round {number + 1} of {order.rounds}: {side.kind}")
                try:
                    rounds.append(await _run(side, number, reseeded, manifest, order, progress))
                except TargetUnfit as error:
                    if side.kind == OURS:
                        raise
                    notes.append(f"left out: {side.kind}, from round {number + 1} on: {error}")
                    sides.remove(side)
        memory = [
            Memory(
                side=side.kind,
                processes=len(side.launches),
                held=side.held_bytes,
                start_seconds=side.start_seconds,
            )
            for side in sides
        ]
    rows = rows_of(rounds, scenario)
    notes += failures_of(rounds)
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
    log: Callable[[str], None],
) -> list[Served]:
    sides: list[Served] = []
    for kind in (OURS, *order.peers):
        work = order.home / f"side-{kind}"
        setup = setup_of(order.scenario, order.base, manifest, work, {}, order.llama_cpp)
        try:
            side = await stack.enter_async_context(started(kind, setup))
        except ServerFailed as error:
            if kind == OURS:
                raise
            notes.append(f"left out: {kind}: {error}")
            continue
        log(f"{kind} is up after {side.start_seconds:.0f} s")
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
        f"merged: {len(side.urls)} of {wanted} models run; a process with a merged model takes "
        f"{each:.2f} GiB, and {side.fits} of them would fit here"
    )


async def _run(
    side: Served,
    number: int,
    reseeded: Scenario,
    manifest: Manifest | None,
    order: Order,
    progress: Progress,
) -> Round:
    setting = setting_of(reseeded, side, manifest, order.processes)
    with _awake(side):
        done = await run_scenario(reseeded, setting, progress)
    return Round(
        side=side.kind,
        number=number,
        summary=summarize(done, reseeded),
        wrong=len(done.wrong),
        judged=done.judged,
        failed=sum(record.outcome == "failed" for record in done.records),
        apart=len(done.agreement.disagreements),
        lengths=lengths_of(done.records),
    )


@contextlib.contextmanager
def _awake(side: Served) -> Iterator[None]:
    side.thaw()
    try:
        yield
    finally:
        side.freeze()

"""The command line: `python -m cluster.simulation [--seed N] [--replicas N] [--slots N] ...`.

Exit code 1: a file can't be written; 2: bad input.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.placement import BOUND
from cluster.simulation.machine import Machine
from cluster.simulation.report import draw, facts, table, write_docs
from cluster.simulation.run import Plan, policies, simulate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

DOCS = Path("docs/scaling.md")
MOST_CALLS = 1_000_000  # some 250 bytes each, and each way has its own


@app.command()
def simulation(
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 1,
    replicas: Annotated[int, typer.Option(min=2, max=1000, help="Servers.")] = 100,
    adapters: Annotated[int, typer.Option(min=1, max=1_000_000, help="Named by calls.")] = 10_000,
    load: Annotated[
        float, typer.Option(min=0.01, max=2, help="Calls, as a share of what the servers can do.")
    ] = 0.7,
    phase: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds of each of the five phases.")
    ] = 30.0,
    sequences: Annotated[int, typer.Option(min=1, help="--max-num-seqs of a server.")] = 24,
    slots: Annotated[int, typer.Option(min=1, help="--max-loras of a server.")] = 8,
    places: Annotated[int, typer.Option(min=1, help="--max-cpu-loras of a server.")] = 32,
    load_seconds: Annotated[
        float, typer.Option(min=0, max=600, help="Time to load a cold adapter.")
    ] = 0.119,
    bound: Annotated[
        float, typer.Option(min=1, help="Of bounded affinity, times the mean load.")
    ] = BOUND,
    chart: Annotated[Path, typer.Option(help="File for the chart (SVG).")] = Path(
        ".lorry/simulation.svg"
    ),
    docs: Annotated[
        bool, typer.Option("--write-docs", help=f"Write table and chart into {DOCS}.")
    ] = False,
) -> None:
    """Compare ways to place calls on replicas: random, least loaded, by adapter, bounded."""
    if places < slots:
        raise typer.BadParameter("a server has at least as many places as slots: raise --places")
    machine = Machine(sequences, slots, places, load_seconds=load_seconds)
    plan = Plan(seed, replicas, adapters, load, phase, machine)
    if (calls := plan.seconds * plan.traffic().calls_per_second) > MOST_CALLS:
        said = f"that would be {calls:,.0f} calls, more than {MOST_CALLS:,}: lower --phase"
        raise typer.BadParameter(said)
    ways = policies(seed, bound)
    outcomes = {name: simulate(plan, policy) for name, policy in ways.items()}
    print(f"{facts(plan, outcomes)}\n\n{table(plan, outcomes)}")
    try:
        if docs:
            write_docs(DOCS, plan, outcomes, _command())
        else:
            draw(plan, outcomes, chart)
            print(f"\nchart: {chart}")
    except OSError as error:
        print(f"error: can't write {error.filename}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(1) from None


def _command() -> str:
    options = [each for each in sys.argv[1:] if each != "--write-docs"]
    return shlex.join(["python", "-m", "cluster.simulation", *options])

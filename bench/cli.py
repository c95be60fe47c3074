"""The command line: `python -m bench [--rows NAME,...] [--rounds N] [--write-docs]`.

Exit code 1: a row could not be measured; 2: bad input. A missed goal is a result and exits with 0.
"""

from __future__ import annotations

import datetime
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.errors import BenchError, OptionsClash, RowUnknown

if TYPE_CHECKING:
    from bench.model import Home
    from bench.report import Report
    from bench.rows import Row

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CALLER_ERRORS = (RowUnknown, OptionsClash)
DOCS = Path("docs/benchmarks.md")
RESULTS = "results.json"


@app.command()
def bench(
    rows: Annotated[
        str, typer.Option(metavar="NAME,...", help="Rows to measure; * matches any text.")
    ] = "*",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; slow rows get fewer.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the model, logs and results.")] = Path(
        ".lorry/bench"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Results as JSON. [default: OUT/results.json]")
    ] = None,
    write_docs: Annotated[
        bool, typer.Option("--write-docs", help=f"Write the table into {DOCS}.")
    ] = False,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny", help="A tiny model and few tokens: shows only that everything runs."
        ),
    ] = False,
    list_rows: Annotated[bool, typer.Option("--list", help="Print the rows' names.")] = False,
    model: Annotated[
        bool, typer.Option("--model", help="Build the model, print its base's folder, and end.")
    ] = False,
) -> None:
    """Measure Lorry's engine beside plain vLLM and print both sides of every row."""
    with reported():
        if tiny and write_docs:
            raise OptionsClash("--tiny gives no figures for the docs: leave out --write-docs")
        chosen = _choose(rows, tiny)
        if list_rows:
            print("\n".join(row.name for row in chosen))
            return
        if model:
            print(_prepare(out, tiny).base)
            return
        report = _measure(chosen, rounds, out, tiny)
        _publish(report, json_file or out / RESULTS, DOCS if write_docs else None)
        if any(result.failure for result in report.results):
            raise typer.Exit(1)


@contextmanager
def reported() -> Iterator[None]:
    try:
        yield
    except BenchError as error:
        print(f"error: {error} ({error.code})", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, CALLER_ERRORS) else 1) from None


def _choose(patterns: str, tiny: bool) -> list[Row]:
    from bench.rows import all_rows, choose, shrink

    chosen = choose([name.strip() for name in patterns.split(",")], all_rows())
    return [shrink(row) for row in chosen] if tiny else chosen


def _prepare(out: Path, tiny: bool) -> Home:
    from bench.model import FULL, TINY, prepare

    return prepare(out, TINY if tiny else FULL)


def _measure(rows: list[Row], rounds: int, out: Path, tiny: bool) -> Report:
    from bench.conduct import measure
    from bench.report import Report, describe_machine, versions
    from bench.sides import Sides

    # Running sides must be stopped; the default action would leave them behind, frozen.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Sides(_prepare(out, tiny)) as sides:
        results = measure(rows, rounds, sides, _log)
    return Report(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        machine=describe_machine(),
        versions=versions(),
        rounds=rounds,
        results=results,
    )


def _publish(report: Report, json_file: Path, docs: Path | None) -> None:
    from rich.console import Console

    from bench.report import write_docs, write_json

    # A pipe has no width: rich would fold the table to 80 columns.
    console = Console() if os.isatty(sys.stdout.fileno()) else Console(width=200)
    console.print(report.as_table())
    write_json(report, json_file)
    if docs is not None:
        write_docs(report, docs)


def _log(line: str) -> None:
    now = datetime.datetime.now().astimezone()
    print(f"{now:%H:%M:%S} {line}", file=sys.stderr, flush=True)

"""`lorry loadtest SCENARIO`, and the commands `compare`, `sweep`, `mark` and `list`.

Slow imports stay inside the commands. Exit codes: 1 not passed, 2 bad input, 3 no usable server.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from loadtest.errors import LoadtestError, OptionsClash, OutUnwritable, ScenarioInvalid

if TYPE_CHECKING:
    from rich.console import Console

OUT = Path(".lorry/loadtest")
CALLER_ERRORS = (OptionsClash, OutUnwritable, ScenarioInvalid)


class ScenarioFirst(TyperGroup):
    """`lorry loadtest SCENARIO ...` is `lorry loadtest run SCENARIO ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="loadtest",
    cls=ScenarioFirst,
    help="Load-test an OpenAI-compatible server: lorry loadtest SCENARIO --url URL",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ScenarioFile = Annotated[str, typer.Argument(help="A scenario file, or the name of one of `list`.")]
Url = Annotated[str | None, typer.Option(metavar="URL", help="The server's address, without /v1.")]
Serve = Annotated[
    Path | None,
    typer.Option(metavar="BASE", help="Start a server on this base."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        envvar=["LORRY_API_KEY", "OPENAI_API_KEY"],
        help="API key for the calls; better in a variable, where other users can not read it.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--admin-token-file",
        help="File with the token for actions. [default: the variable LORRY_ADMIN_TOKEN]",
    ),
]
Markers = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder that `mark` wrote.")]
Only = Annotated[
    str, typer.Option("--adapters", metavar="GLOB", help="Use only adapters of these names.")
]
Seed = Annotated[int | None, typer.Option(help="Another seed: other calls, same traffic.")]
Processes = Annotated[int, typer.Option(min=1, max=64, help="Processes of the load generator.")]
Out = Annotated[Path | None, typer.Option(help=f"Folder of the reports. [default: {OUT}/NAME]")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@app.command()
def run(
    scenario: ScenarioFile,
    url: Url = None,
    serve: Serve = None,
    api_key: ApiKey = None,
    token_file: TokenFile = None,
    markers: Markers = None,
    only: Only = "*",
    seed: Seed = None,
    processes: Processes = 1,
    spans: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="Receive the server's spans here."),
    ] = None,
    out: Out = None,
    records: Annotated[
        Path | None, typer.Option(help="Write every call as a JSON line to this file.")
    ] = None,
    json_: Json = False,
) -> None:
    """Run a scenario against one server and report whether it passes."""
    with errors_reported():
        from loadtest.plan.scenario import find_scenario
        from loadtest.run import run as run_once
        from loadtest.servers.testbed import Options

        options = Options(
            url=url,
            serve=serve,
            api_key=api_key,
            admin_token=_admin_token(token_file),
            markers=markers,
            adapters=only,
            processes=processes,
            spans=spans,
            home=OUT,
        )
        plan = find_scenario(scenario, seed)
        passed = asyncio.run(
            run_once(plan, options, out or OUT / plan.name, records, _console(json_), json_)
        )
    raise typer.Exit(0 if passed else 1)


@app.command()
def sweep(
    scenario: ScenarioFile,
    url: Url = None,
    serve: Serve = None,
    api_key: ApiKey = None,
    only: Only = "*",
    seed: Seed = None,
    processes: Processes = 1,
    stream: Annotated[
        str | None, typer.Option(help="One of the scenario's streams. [default: its first]")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(metavar="R,...", help="Calls per second. [default: around the capacity]"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of each rate.")] = 15.0,
    out: Out = None,
    json_: Json = False,
) -> None:
    """Find a server's capacity: throughput and p99 TTFT at rising rates, and the knee."""
    with errors_reported():
        from loadtest.plan.scenario import find_scenario
        from loadtest.servers.testbed import Options
        from loadtest.sweep import sweep as run_sweep

        options = Options(
            url=url, serve=serve, api_key=api_key, adapters=only, processes=processes, home=OUT
        )
        plan = find_scenario(scenario, seed)
        chosen = stream or next(iter(plan.streams))
        if chosen not in plan.streams:
            raise OptionsClash(f"no stream {chosen!r}: there are {', '.join(plan.streams)}")
        folder = out or OUT / f"{plan.name}-sweep"
        given = [_rate(text) for text in rates.split(",")] if rates else []
        passed = asyncio.run(
            run_sweep(plan, chosen, given, seconds, options, folder, _console(json_), json_)
        )
    raise typer.Exit(0 if passed else 1)


@app.command()
def compare(
    scenario: ScenarioFile,
    serve: Annotated[Path, typer.Option(metavar="BASE", help="Base model of all sides.")],
    peers: Annotated[
        str,
        typer.Option(
            metavar="PEER,...",
            help="plain, stock, stock-tuned, stock-base, merged, peft, llamacpp.",
        ),
    ] = "stock",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Each runs all sides once.")] = 3,
    seed: Seed = None,
    processes: Processes = 1,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            envvar="LLAMA_CPP",
            help="llama.cpp's source with a built server. [default: what `make llama-cpp` made]",
        ),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The base for llamacpp. [default: BASE.gguf]"),
    ] = None,
    out: Out = None,
    json_: Json = False,
) -> None:
    """Run the same plan against this server and its peers in turn, and print the ratios."""
    with errors_reported():
        from loadtest.compare import Order, check_peers
        from loadtest.compare import compare as run_sides
        from loadtest.plan.scenario import find_scenario
        from loadtest.servers.llama_cpp import FOLDER, LlamaCpp

        plan = find_scenario(scenario, seed)
        folder = out or OUT / f"{plan.name}-compare"
        chosen = check_peers([name.strip() for name in peers.split(",")], plan)
        found = None
        if "llamacpp" in chosen:
            found = LlamaCpp.found(llama_cpp or FOLDER, gguf, serve, plan)
        order = Order(
            scenario=plan,
            base=serve,
            peers=chosen,
            rounds=rounds,
            processes=processes,
            home=OUT,
            llama_cpp=found,
        )
        passed = asyncio.run(run_sides(order, folder, _console(json_), json_))
    raise typer.Exit(0 if passed else 1)


@app.command()
def mark(
    base: Annotated[Path, typer.Argument(help="Folder of a Llama-like base.")],
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of adapters.")] = 32,
    versions: Annotated[int, typer.Option(min=1, max=100, help="Versions of each adapter.")] = 2,
) -> None:
    """Write adapters that answer with nothing but their own marker, for publishing and testing."""
    with errors_reported():
        from loadtest.markers.marked import make_marked

        make_marked(base, out, count, versions)
        print(f"{count} adapters in {out}; judge their answers with `--markers {out}`")


@app.command(name="list")
def list_() -> None:
    """List the included scenarios."""
    with errors_reported():
        from loadtest.plan.scenario import find_scenario, names

        for name in names():
            print(f"{name:26}{find_scenario(name).about}")


@contextmanager
def errors_reported() -> Iterator[None]:
    """Print a LoadtestError as one sentence, and exit with its code."""
    _handle_signals()
    try:
        yield
    except LoadtestError as error:
        print(f"error: {error} ({error.code})", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, CALLER_ERRORS) else 3) from None
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None


def _handle_signals() -> None:
    """Treat SIGTERM and SIGHUP like Ctrl-C, so that no started server stays behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    # A shell script starts background commands with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _console(to_stderr: bool) -> Console:
    """Console for the table: stderr with --json, because stdout then holds the document alone."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    # A pipe has no width: rich would fold the table to 80 columns.
    wide = None if stream.isatty() else 160
    return Console(file=stream, width=wide, highlight=False)


def _admin_token(file: Path | None) -> str | None:
    """The token is never an option: other users of the machine can read command lines."""
    if file is None:
        return os.environ.get("LORRY_ADMIN_TOKEN")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsClash(f"can't read the admin token's file {file}: {error}") from None


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 100_000:
        raise OptionsClash(f"--rates: {text!r} is not a number of calls per second above 0")
    return rate

"""The command line of training: `lorry train RECIPE.yaml`, `lorry data check FILE`.

Progress goes to stderr, facts to stdout. What a command needs is imported inside it, so that
--help is quick.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from training.errors import InputError, Interrupted, TrainingError

if TYPE_CHECKING:
    from training.progress import Stop
    from training.run import Trained

STOPPING = (signal.SIGINT, signal.SIGTERM)
ONE_REQUEST = 1.0  # seconds; `timeout` and service managers send a signal twice

app = typer.Typer(
    help="Train adapters.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# Options that the commands of training share.
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="LORRY_STORE",
        metavar="PATH|URL",
        help="The store's folder, or a bucket such as s3://BUCKET/PREFIX.",
    ),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        envvar="LORRY_CATALOG",
        help="URL of a catalog that servers share; the store's own unless given.",
        show_default=False,
    ),
]
AliasOption = Annotated[
    list[str] | None,
    typer.Option("--alias", help="Alias to point at the published version.  [default: stable]"),
]
NoAliasOption = Annotated[bool, typer.Option("--no-alias", help="Publish without an alias.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, dotted; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.callback()
def _commands() -> None:
    """Train adapters."""


@app.command("train")
def train_command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: SetOption = None,
    output: Annotated[
        Path, typer.Option(help="Folder for trained adapters, with one folder for each run.")
    ] = Path(".lorry/trained"),
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish the adapter after training.")
    ] = False,
    store: StoreOption = ".lorry/store",
    catalog: CatalogOption = None,
    alias: AliasOption = None,
    no_alias: NoAliasOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where a run stopped half-way.")
    ] = False,
    report_to: Annotated[
        list[str] | None,
        typer.Option("--report-to", metavar="NAME", help="Also tensorboard or wandb; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter with QLoRA; a finished identical run is reused."""
    with reported():
        if resume and restart:
            raise InputError("--resume and --restart exclude each other", "give one of them")
        from adapters.store import parse_place
        from training.progress import Control, Stop, shown
        from training.publish import choose_aliases, publish_run
        from training.recipe import load_recipe
        from training.run import Again, train

        aliases = choose_aliases(alias, no_alias, publish)
        loaded = load_recipe(recipe, overrides or [])
        again: Again = "resume" if resume else "restart" if restart else "refuse"
        stop = Stop()
        with stoppable(stop), shown() as (say, on_step):
            control = Control(say, on_step, stop, tuple(report_to or ()))
            trained = train(loaded, output, control, again=again)
        published = None
        if publish:
            place = parse_place(store)
            published = publish_run(loaded, trained, place, catalog, aliases, _say)
    if as_json:
        typer.echo(json.dumps(_facts(trained, published)))
    else:
        _print_facts(trained, published)


data_app = typer.Typer(help="Check data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.callback()
def _data_commands() -> None:
    """Check data sets before they are trained on."""


@data_app.command("check")
def check_command(
    files: Annotated[
        list[str],
        typer.Argument(help="JSONL, JSON, CSV or Parquet files, or OWNER/NAME[:SPLIT] of the hub."),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="The base, a folder or ORG/NAME[@REVISION] of the hub: counts tokens, and finds"
            " what its chat template can't show."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another set, which must share no prompt with this one; repeatable."),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=8, help="Longest sequence, in tokens, as in the recipe.")
    ] = 512,
    method: Annotated[
        Literal["sft", "dpo"], typer.Option(help="What the recipe learns: answers or preferences.")
    ] = "sft",
    as_json: JsonOption = False,
) -> None:
    """Report what a data set holds and what is wrong with it; exits with 2 if anything is."""
    with reported():
        from training.data.report import check_data

        found = check_data(files, base, against or [], max_length, method, _say)
    if as_json:
        typer.echo(json.dumps(found.facts()))
    else:
        for line in found.lines():
            typer.echo(line)
    if not found.ok:
        raise typer.Exit(2)


@contextmanager
def reported() -> Iterator[None]:
    """Turn a known error into one line on stderr and an exit code: 2 for input, else 1."""
    from adapters.errors import AdapterError, BaseUnreadable

    try:
        yield
    except (TrainingError, AdapterError) as error:
        typer.echo(f"error: {error} ({error.code})", err=True)
        if isinstance(error, Interrupted):
            raise typer.Exit(128 + error.signal) from error
        by_caller = isinstance(error, InputError | BaseUnreadable)
        raise typer.Exit(2 if by_caller else 1) from error


@contextmanager
def stoppable(stop: "Stop") -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks the run to stop; the second one ends the process at once."""
    before = {name: signal.getsignal(name) for name in STOPPING}

    asked = 0.0

    def ask_to_stop(number: int, _: Any) -> None:
        nonlocal asked
        if stop.signal:
            if time.monotonic() - asked > ONE_REQUEST:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        asked = time.monotonic()
        stop.signal = number
        os.write(2, b"\nstopping after this step, with a checkpoint; again: at once\n")

    for name in STOPPING:
        signal.signal(name, ask_to_stop)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _facts(trained: "Trained", published: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "folder": str(trained.folder),
        "reused": trained.reused,
        "published": published,
        "provenance": trained.provenance,
    }


def _print_facts(trained: "Trained", published: dict[str, Any] | None) -> None:
    facts = trained.provenance
    typer.echo(
        f"{facts['name']}: {facts['steps']} steps in {facts['train_seconds']} s, "
        f"loss {facts['train_loss']:.4f}, {facts['trainable_parameters']:,} parameters"
        f"{' (reused)' if trained.reused else ''}"
    )
    if facts["best_step"]:
        metric = facts["metric"] and f", {facts['metric']['name']} {facts['validation_metric']:.3f}"
        typer.echo(
            f"kept step {facts['best_step']}: validation loss {facts['validation_loss']:.4f}"
            f"{metric or ''}"
        )
    typer.echo(trained.folder)
    if published:
        typer.echo(f"published {published['name']}@{published['version']} {published['digest']}")

"""The command line of training: `lorry train RECIPE.yaml`, `lorry data check FILE`.

Progress goes to stderr, facts to stdout. What a command needs is imported inside it, so that
--help is quick.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.errors import InputError, TrainingError

if TYPE_CHECKING:
    from training.recipe import Recipe
    from training.run import Trained

app = typer.Typer(
    help="Train adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Train adapters."""


@app.command("train")
def train_command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, dotted; repeatable."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for trained adapters, with one folder for each run.")
    ] = Path(".lorry/trained"),
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish the adapter after training.")
    ] = False,
    store: Annotated[
        Path, typer.Option("--store", envvar="LORRY_STORE", help="The store to publish to.")
    ] = Path(".lorry/store"),
    catalog: Annotated[
        str | None,
        typer.Option(
            "--catalog",
            envvar="LORRY_CATALOG",
            help="URL of a catalog that servers share; the store's own unless given.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train an adapter with QLoRA; a finished identical run is reused."""
    with reported():
        from training.recipe import load_recipe
        from training.run import train

        loaded = load_recipe(recipe, overrides or [])
        trained = train(loaded, output, _progress)
    published = _publish(loaded, trained, store, catalog) if publish else None
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
        typer.Option(help="The base: counts tokens, and finds what its chat template can't show."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another set, which must share no prompt with this one; repeatable."),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=8, help="Longest sequence, in tokens, as in the recipe.")
    ] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Report what a data set holds and what is wrong with it; exits with 2 if anything is."""
    with reported():
        from training.data.report import check_data

        found = check_data(files, base, against or [], max_length)
    if as_json:
        typer.echo(json.dumps(found.facts()))
    else:
        for line in found.lines():
            typer.echo(line)
    if not found.ok:
        raise typer.Exit(2)


@contextmanager
def reported() -> Iterator[None]:
    """Turn a TrainingError into one line on stderr and an exit code: 2 for input, else 1."""
    try:
        yield
    except TrainingError as error:
        typer.echo(f"error: {error} ({error.code})", err=True)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from error


def _publish(
    recipe: "Recipe", trained: "Trained", store: Path, catalog: str | None
) -> dict[str, Any]:
    from adapters.catalog import Catalog
    from adapters.errors import AdapterError
    from adapters.publish import Rules, publish
    from adapters.store import Store

    rules = Rules(trained.base_folder, recipe.base_name)
    try:
        with Catalog.open(store, catalog) as index:
            version = publish(
                trained.folder, recipe.name, store=Store(store), catalog=index, rules=rules
            )
    except AdapterError as error:
        typer.echo(f"error: {error} ({error.code})", err=True)
        raise typer.Exit(1) from error
    return version.as_json()


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
    typer.echo(trained.folder)
    if published:
        typer.echo(f"published {published['name']}@{published['version']} {published['digest']}")


def _progress(line: str) -> None:
    typer.echo(line, err=True)

"""`lorry sweep RECIPE --over KEY=VALUE,VALUE`: which setting is best, and is it more than noise?

Exit codes: 1 no run succeeded or the winner can't be published, 2 bad input.
"""

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from training.cli import (
    AliasOption,
    CatalogOption,
    JsonOption,
    NoAliasOption,
    SetOption,
    StoreOption,
    reported,
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command("sweep")
def sweep_command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    over: Annotated[
        list[str],
        typer.Option(
            "--over", metavar="KEY=V1,V2", help="Values of one key, dotted; repeatable: all pairs."
        ),
    ],
    overrides: SetOption = None,
    output: Annotated[
        Path, typer.Option(help="Folder for trained adapters and the sweep's report.")
    ] = Path(".lorry/trained"),
    publish: Annotated[bool, typer.Option("--publish", help="Publish the best one.")] = False,
    store: StoreOption = ".lorry/store",
    catalog: CatalogOption = None,
    alias: AliasOption = None,
    no_alias: NoAliasOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to more than 32 runs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train each combination of settings and compare them on the validation set."""
    with reported():
        from adapters.store import parse_place
        from training.publish import choose_aliases, publish_run
        from training.sweep.compare import compare
        from training.sweep.grid import read_grid
        from training.sweep.report import as_document, print_sweep, sweep_folder, write_sweep
        from training.sweep.run import run_sweep, train_apart

        aliases = choose_aliases(alias, no_alias, publish)
        settings = read_grid(recipe, over, overrides or [], consent=yes)
        attempts = run_sweep(settings, partial(train_apart, output=output), _say)
        comparison = compare(attempts)
        folder = sweep_folder(output, settings)
        write_sweep(comparison, folder)
        best, published = comparison.best, None
        if publish and best.trained:
            where = (parse_place(store), catalog, aliases)
            published = publish_run(best.setting.recipe, best.trained, *where, _say)
    if as_json:
        typer.echo(json.dumps(as_document(comparison) | {"published": published}))
        return
    print_sweep(comparison)
    if comparison.cheapest is not best:
        chosen = [*(overrides or []), *comparison.cheapest.setting.overrides]
        words = [str(recipe), "--output", str(output), *(f"--set={each}" for each in chosen)]
        typer.echo(f"To publish the smaller one: lorry train {shlex.join(words)} --publish")
    typer.echo(folder / "sweep.html")
    if published:
        typer.echo(f"published {published['name']}@{published['version']} {published['digest']}")


def _say(line: str) -> None:
    typer.echo(line, err=True)

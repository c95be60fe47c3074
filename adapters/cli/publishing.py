"""`lorry adapters publish`."""

from pathlib import Path
from typing import Annotated

import typer

from adapters.cli.options import (
    DEFAULT_STORE,
    CatalogOption,
    JsonOption,
    StoreOption,
    print_json,
    reported,
)


def publish(
    source: Annotated[
        str, typer.Argument(help="The folder that PEFT's save_pretrained wrote.", metavar="PATH")
    ],
    name: Annotated[str, typer.Option(help="The adapter's name.")],
    base: Annotated[Path, typer.Option(help="The folder of the model it was trained on.")],
    alias: Annotated[
        list[str] | None,
        typer.Option(help="Point this alias at it; may be repeated. [default: stable]"),
    ] = None,
    no_alias: Annotated[
        bool, typer.Option("--no-alias", help="Publish it without rolling it out.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an adapter and publish it as the next version of its name."""
    if no_alias and alias:
        raise typer.BadParameter("--alias and --no-alias exclude each other")
    with reported():
        from adapters.names import STABLE
        from adapters.publish import publish

        aliases = () if no_alias else alias or (STABLE,)
        version = publish(
            Path(source), name=name, store=store, base=base, aliases=aliases, catalog_url=catalog
        )
    if as_json:
        print_json(version.as_json())
    else:
        pointing = ", ".join(version.aliases) or "no alias"
        print(f"{version.label} {version.digest} ({pointing})")

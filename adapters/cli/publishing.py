"""`lorry adapters publish` and `watch`."""

import itertools
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.options import (
    DEFAULT_STORE,
    AliasOption,
    BaseNameOption,
    BaseOption,
    CatalogOption,
    JsonOption,
    MaxRankOption,
    MismatchOption,
    StoreOption,
    TokenFileOption,
    UrlOption,
    opened_server,
    print_json,
    reported,
)
from adapters.errors import quote

if TYPE_CHECKING:
    from adapters.catalog import AdapterVersion


def publish(
    source: Annotated[
        str,
        typer.Argument(
            help="The folder that PEFT's save_pretrained wrote, hf://ORG/REPO[@REVISION],"
            " or a folder's address (s3://, gs://, az://, https://)."
        ),
    ],
    name: Annotated[str, typer.Option(help="The adapter's name.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the model it was trained on; with --url, the server's own.",
            show_default=False,
        ),
    ] = None,
    base_name: BaseNameOption = None,
    alias: AliasOption = None,
    no_alias: Annotated[
        bool, typer.Option("--no-alias", help="Publish it without rolling it out.")
    ] = False,
    max_rank: MaxRankOption = None,
    allow_base_mismatch: MismatchOption = False,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an adapter and publish it as the next version of its name."""
    if no_alias and alias:
        raise typer.BadParameter("--alias and --no-alias exclude each other")
    aliases = _aliases(alias, no_alias)
    if url:
        _refuse_own_rules(base, base_name, max_rank, allow_base_mismatch)
        with opened_server(url, token_file) as server:
            version = server.publish(source, name=name, **aliases)
    elif base is None:
        raise typer.BadParameter(
            "name the folder of the base, or a server by --url", param_hint="--base"
        )
    else:
        with reported():
            publish_into = _publisher(
                store, catalog, base, base_name, max_rank, allow_base_mismatch
            )
            version = publish_into(source, name=name, **aliases)
    if as_json:
        print_json(version.as_json())
    else:
        pointing = ", ".join(version.aliases) or "no alias"
        print(f"{version.label} {version.digest} ({pointing})")


def watch(
    folder: Annotated[Path, typer.Argument(help="Sub-folders are published under their names.")],
    base: BaseOption,
    base_name: BaseNameOption = None,
    alias: AliasOption = None,
    max_rank: MaxRankOption = None,
    allow_base_mismatch: MismatchOption = False,
    interval: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, then end.")] = False,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
) -> None:
    """Publish what is dropped into a folder; with --once, exits 1 unless all of it was."""
    from adapters.watch import Sighting, Watcher

    unpublished = []

    def report(seen: Sighting) -> None:
        if seen.status != "published":
            unpublished.append(seen)
        # Whoever drops a folder there chooses its name, and terminals do what some names say.
        shown = seen.name if seen.name.isprintable() else quote(seen.name)
        typer.echo(f"{seen.status:10}{shown} {seen.message}", err=seen.version is None)

    with reported():
        _check_standing(base, alias or ())
    publish_into = _publisher(store, catalog, base, base_name, max_rank, allow_base_mismatch)
    options = _aliases(alias, no_alias=False)
    watcher = Watcher(
        folder, lambda path, name: publish_into(path, name=name, if_new=True, **options), report
    )
    looks = range(2) if once else itertools.count()
    for look in looks:
        if look:
            time.sleep(interval)
        watcher.poll()
    if unpublished:
        raise typer.Exit(1)


def _check_standing(base: Path, aliases: Iterable[str]) -> None:
    """What would refuse every folder is an error at once; raises BaseUnreadable or BadName."""
    from adapters.checkpoint.base import read_base
    from adapters.names import check_alias

    read_base(base)
    for each in aliases:
        check_alias(each)


def _refuse_own_rules(
    base: Path | None, base_name: str | None, max_rank: int | None, allow_mismatch: bool
) -> None:
    given = {
        "--base": base,
        "--base-name": base_name,
        "--max-rank": max_rank,
        "--allow-base-mismatch": allow_mismatch,
    }
    for option, value in given.items():
        if value:
            raise typer.BadParameter(
                "with --url the server judges by its own base and settings: leave it out",
                param_hint=option,
            )


def _publisher(
    store: Path,
    catalog: str | None,
    base: Path,
    base_name: str | None,
    max_rank: int | None,
    allow_base_mismatch: bool,
) -> "Callable[..., AdapterVersion]":
    from adapters.checkpoint.peft_config import MAX_RANK
    from adapters.publish import publish

    return partial(
        publish,
        store=store,
        catalog_url=catalog,
        base=base,
        base_name=base_name,
        max_rank=max_rank or MAX_RANK,
        allow_base_mismatch=allow_base_mismatch,
    )


def _aliases(alias: list[str] | None, no_alias: bool) -> dict[str, tuple[str, ...]]:
    from adapters.names import STABLE

    return {"aliases": () if no_alias else tuple(alias or (STABLE,))}

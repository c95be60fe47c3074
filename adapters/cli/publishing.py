"""`lorry adapters publish`, `compose` and `watch`."""

import itertools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.options import JSON, SERVER, STORE, Site, acts_on, reported
from adapters.errors import quote

if TYPE_CHECKING:
    from adapters.catalog import AdapterVersion
    from adapters.publish import Rules

BaseOption = Annotated[
    str,
    typer.Option(help="The model it was trained on: a folder, or ORG/NAME[@REVISION] of the hub."),
]
BaseNameOption = Annotated[
    str | None,
    typer.Option(
        help="The name under which the base is served. [default: ORG/NAME, or its folder's name]"
    ),
]
AliasOption = Annotated[
    list[str] | None,
    typer.Option(help="Point this alias at it; may be repeated. [default: stable]"),
]
NoAliasOption = Annotated[
    bool, typer.Option("--no-alias", help="Publish it without rolling it out.")
]
MaxRankOption = Annotated[
    int | None, typer.Option(min=1, help="Refuse a larger rank than the servers make room for.")
]
MismatchOption = Annotated[
    bool,
    typer.Option("--allow-base-mismatch", help="Although its config names another base."),
]


@acts_on(STORE, SERVER, JSON)
def publish(
    site: Site,
    source: Annotated[
        str,
        typer.Argument(
            help="The folder that PEFT's save_pretrained wrote, hf://ORG/REPO[@REVISION],"
            " or a folder's address (s3://, gs://, az://, https://)."
        ),
    ],
    name: Annotated[str, typer.Option(help="The adapter's name.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="The model it was trained on: a folder, or ORG/NAME[@REVISION] of the hub; with"
            " --url, the server's own.",
            show_default=False,
        ),
    ] = None,
    base_name: BaseNameOption = None,
    alias: AliasOption = None,
    no_alias: NoAliasOption = False,
    max_rank: MaxRankOption = None,
    allow_base_mismatch: MismatchOption = False,
) -> None:
    """Check an adapter and publish it as the next version of its name."""
    aliases = _chosen_aliases(alias, no_alias)
    if site.url:
        _refuse_own_rules(
            {
                "--base": base,
                "--base-name": base_name,
                "--max-rank": max_rank,
                "--allow-base-mismatch": allow_base_mismatch,
            }
        )
        with site.opened_server() as server:
            version = server.publish(source, name=name, aliases=aliases)
    elif base is None:
        raise typer.BadParameter(
            "name the base, by its folder or its id, or a server by --url", param_hint="--base"
        )
    else:
        with reported():  # before a store is made for nothing
            _check_names(base_name, aliases, name)
            folder = find_base(base)
        with site.opened_store(create=True) as catalog:
            from adapters.publish import publish
            from adapters.store import open_store

            rules = make_rules(folder, base_name, max_rank, allow_base_mismatch)
            store = open_store(site.place)
            version = publish(
                source, name, store=store, catalog=catalog, rules=rules, aliases=aliases
            )
    _print_published(site, version)


@acts_on(STORE, SERVER, JSON)
def compose(
    site: Site,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new adapter's name.")],
    text: Annotated[
        str, typer.Argument(metavar="SUM", help="Such as 'orders@1*0.7+tone@3*0.5'; quote it.")
    ],
    alias: AliasOption = None,
    no_alias: NoAliasOption = False,
    max_rank: MaxRankOption = None,
) -> None:
    """Publish a sum of adapters as the next version of a name, with its parts as provenance."""
    aliases = _chosen_aliases(alias, no_alias)
    if site.url:
        _refuse_own_rules({"--max-rank": max_rank})
        with site.opened_server() as server:
            version = server.compose(name, text, aliases=aliases)
    else:
        with site.opened_store() as catalog:
            from adapters.checkpoint.peft_config import MAX_RANK
            from adapters.compose import compose
            from adapters.store import open_store

            version = compose(
                name,
                text,
                store=open_store(site.place),
                catalog=catalog,
                aliases=aliases,
                max_rank=max_rank or MAX_RANK,
            )
    _print_published(site, version)


@acts_on(STORE)
def watch(
    site: Site,
    folder: Annotated[Path, typer.Argument(help="Sub-folders are published under their names.")],
    base: BaseOption,
    base_name: BaseNameOption = None,
    alias: AliasOption = None,
    max_rank: MaxRankOption = None,
    allow_base_mismatch: MismatchOption = False,
    interval: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, then end.")] = False,
) -> None:
    """Publish the sub-folders of a folder; with --once, exits 1 unless all were published."""
    from adapters.catalog import AdapterVersion, Catalog
    from adapters.publish import publish
    from adapters.store import open_store
    from adapters.watch import Sighting, Watcher

    unpublished = []
    with reported():
        _check_names(base_name, alias or ())
        rules = make_rules(find_base(base), base_name, max_rank, allow_base_mismatch)
    aliases = _aliases(alias)

    def offer(source: Path, name: str) -> AdapterVersion:
        # Opened for each: a catalog that is away now may be back at the next look.
        with Catalog.open(site.place, site.catalog) as catalog:
            return publish(
                source,
                name,
                store=open_store(site.place),
                catalog=catalog,
                rules=rules,
                aliases=aliases,
                if_new=True,
            )

    def report(seen: Sighting) -> None:
        if seen.status != "published":
            unpublished.append(seen)
        # A folder's name is untrusted text: control characters must not reach the terminal.
        shown = seen.name if seen.name.isprintable() else quote(seen.name)
        typer.echo(f"{seen.status:10}{shown} {seen.message}", err=seen.version is None)
        if seen.version:
            _print_warnings(seen.version)

    watcher = Watcher(folder, offer, report)
    for look in range(2) if once else itertools.count():
        if look:
            time.sleep(interval)
        watcher.poll()
    if unpublished:
        raise typer.Exit(1)


def _print_published(site: Site, version: "AdapterVersion") -> None:
    _print_warnings(version)
    pointing = ", ".join(version.aliases) or "no alias"
    site.print(version.as_json(), f"{version.label} {version.digest} ({pointing})")


def _print_warnings(version: "AdapterVersion") -> None:
    from adapters.publish import list_notes, list_warnings

    for note in list_notes(version):
        typer.echo(f"note: {note}", err=True)
    for warning in list_warnings(version):
        typer.echo(f"warning: {warning}", err=True)


def _check_names(base_name: str | None, aliases: Iterable[str], name: str | None = None) -> None:
    """Raise BadName for options that would refuse every folder."""
    from adapters.names import check_alias, check_base_name, check_publishable_name

    if name is not None:
        check_publishable_name(name)
    for each in aliases:
        check_alias(each)
    check_base_name(base_name)


def find_base(base: str) -> Path:
    """The folder of the base; raises an AdapterError."""
    from adapters.models import find_shape

    return find_shape(base, lambda line: typer.echo(line, err=True))


def _refuse_own_rules(given: dict[str, str | int | None]) -> None:
    for option, value in given.items():
        if value:
            raise typer.BadParameter(
                "with --url the server judges by its own base and settings: leave it out",
                param_hint=option,
            )


def make_rules(
    base: Path, base_name: str | None, max_rank: int | None, allow_base_mismatch: bool
) -> "Rules":
    from adapters.checkpoint.peft_config import MAX_RANK
    from adapters.publish import Rules

    return Rules(base, base_name, max_rank or MAX_RANK, allow_base_mismatch)


def _chosen_aliases(alias: list[str] | None, no_alias: bool) -> tuple[str, ...]:
    if no_alias and alias:
        raise typer.BadParameter("--alias and --no-alias exclude each other")
    return () if no_alias else _aliases(alias)


def _aliases(alias: list[str] | None) -> tuple[str, ...]:
    from adapters.names import STABLE

    return tuple(alias or (STABLE,))

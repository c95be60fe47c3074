"""`lorry adapters list|show|history`: what there is and what happened. Changes nothing."""

from typing import Annotated

import typer

from adapters.cli.options import (
    DEFAULT_STORE,
    CatalogOption,
    JsonOption,
    ReferenceArgument,
    StoreOption,
    TokenFileOption,
    UrlOption,
    opened,
    print_json,
)
from adapters.errors import no_such_adapter

MAX_LIMIT = 1_000_000_000


def list_(
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List every version of every adapter."""
    from adapters.cli.tables import print_versions, shares_by_version

    with opened(store, catalog, url, token_file) as index:
        versions, aliases = index.list_versions(), index.list_aliases()
    shares = shares_by_version(aliases)
    if as_json:
        listed = ((version, shares.get(version.label, {})) for version in versions)
        print_json([version.as_json() | {"shares": share} for version, share in listed])
    else:
        print_versions(versions, shares)


def show(
    reference: ReferenceArgument,
    key: Annotated[
        str | None, typer.Option(help="Of a split, show the version that this caller gets.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the one version that a reference means now."""
    with opened(store, catalog, url, token_file) as index:
        from adapters.client import RemoteCatalog
        from adapters.names import parse_reference
        from adapters.store import Store

        wanted = parse_reference(reference)
        version = index.resolve_only(wanted) if key is None else index.resolve(wanted, key)
        if isinstance(index, RemoteCatalog):
            state = index.describe_use(version)
        else:
            state = {"path": str(Store(store).path(version.digest))}
        facts = version.as_json() | state
    if as_json:
        print_json(facts)
    else:
        from adapters.cli.tables import print_facts

        print_facts(facts)


def history(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this adapter.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_LIMIT, help="Only so many, the newest. [default: all]"),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell who changed what, and when; the newest last."""
    with opened(store, catalog, url, token_file) as index:
        events = index.list_events(name, limit)
        if name is not None and not events:
            raise no_such_adapter(name)
    if as_json:
        print_json([event.as_json() for event in events])
    else:
        from adapters.cli.tables import print_events

        print_events(events)

"""`lorry adapters list|show|history`: read the catalog."""

from typing import Annotated

import typer

from adapters.cli.options import JSON, SERVER, STORE, ReferenceArgument, Site, acts_on
from adapters.errors import no_such_adapter

MAX_LIMIT = 1_000_000_000


@acts_on(STORE, SERVER, JSON)
def list_(site: Site) -> None:
    """List every version of every adapter."""
    from adapters.cli.tables import print_versions, shares_by_version

    with site.opened() as index:
        versions, aliases = index.list_versions(), index.list_aliases()
    shares = shares_by_version(aliases)
    if site.as_json:
        site.print([each.as_json() | {"shares": shares.get(each.label, {})} for each in versions])
    else:
        print_versions(versions, shares)


@acts_on(STORE, SERVER, JSON)
def show(
    site: Site,
    reference: ReferenceArgument,
    key: Annotated[
        str | None, typer.Option(help="Of a split, show the version that this caller gets.")
    ] = None,
) -> None:
    """Show the one version that a reference means now, and its evaluations, newest last."""
    with site.opened() as index:
        from adapters.client import RemoteCatalog
        from adapters.names import parse_reference
        from adapters.store import open_store

        wanted = parse_reference(reference)
        version = index.resolve_only(wanted) if key is None else index.resolve(wanted, key)
        if isinstance(index, RemoteCatalog):
            state = index.describe_use(version)
        else:
            state = {"path": open_store(site.place).where(version.digest)}
        found = index.list_evaluations(version.name).get((version.name, version.version), ())
    from adapters.cli.tables import describe_evaluation, describe_facts

    facts = version.as_json() | state
    site.print(
        facts | {"evaluations": [each.as_json() for each in found]},
        *describe_facts(facts),
        *map(describe_evaluation, found),
    )


@acts_on(STORE, SERVER, JSON)
def history(
    site: Site,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this adapter.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_LIMIT, help="Only so many, the newest. [default: all]"),
    ] = None,
) -> None:
    """Show every change with its time and its actor; the newest last."""
    with site.opened() as index:
        events = index.list_events(name, limit)
        if name is not None and not events:
            raise no_such_adapter(name)
    if site.as_json:
        site.print([event.as_json() for event in events])
    else:
        from adapters.cli.tables import print_events

        print_events(events)

"""The command line of API keys: `lorry keys ...`, on a store or, with --url, a running server."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.facts import MAX_LIMIT
from adapters.cli.options import (
    JSON,
    SERVER,
    STORE,
    BudgetOption,
    InFlightOption,
    RpmOption,
    Site,
    TpmOption,
    acts_on,
)

if TYPE_CHECKING:
    from adapters.keys import Key, Scope

app = typer.Typer(
    name="keys",
    help="Make API keys, and say what they open; the first one shuts the server for all others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.")]


@app.command()
@acts_on(STORE, SERVER, JSON)
def create(
    site: Site,
    name: Annotated[str, typer.Option(help="What it is called in logs and lists.")],
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Adapters that it may use, by name: * is any letters, ? one. Repeatable.",
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="It may use the base.")] = False,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="inference|admin|metrics", help="What it opens. [inference]"),
    ] = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    max_in_flight: InFlightOption = None,
    budget_tokens: BudgetOption = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it ends, such as 90d. [never]")
    ] = None,
    weight: Annotated[float, typer.Option(help="Its share beside other keys.")] = 1.0,
) -> None:
    """Make a key, and print its secret: this once, as only a digest of it is kept."""
    with site.opened(create=True) as index:
        from adapters.keys import Key, RateLimits
        from adapters.keys.texts import read_budget, read_duration

        now = datetime.now(UTC)
        budget = None if budget_tokens is None else read_budget(budget_tokens)
        wanted = Key(
            id="",
            name=name,
            prefix="",
            scopes=_scopes(scope),
            adapters=tuple(adapters or ()),
            base=base,
            weight=weight,
            created=now,
            expires=None if expires is None else now + read_duration(expires),
            limits=RateLimits(rpm, tpm, max_in_flight, budget),
        )
        key, secret = index.keys.create(wanted, actor=_user())
    if "inference" in key.scopes and not (key.adapters or key.base):
        typer.echo("note: it may use no model: give --adapters and --base as it needs", err=True)
    _print_secret(site, key, secret)


@app.command("list")
@acts_on(STORE, SERVER, JSON)
def list_(site: Site) -> None:
    """List all keys, revoked ones too: their names, what they open, the beginning of a secret."""
    with site.opened() as index:
        keys = index.keys.all()
    if site.as_json:
        site.print([key.as_json() for key in keys])
    else:
        from adapters.cli.tables import print_keys

        print_keys(keys)


@app.command()
@acts_on(STORE, SERVER, JSON)
def show(site: Site, name: NameArgument) -> None:
    """Show one key."""
    with site.opened() as index:
        facts = index.keys.find(name).as_json()
    from adapters.cli.tables import describe_key

    site.print(facts, *describe_key(facts))


@app.command()
@acts_on(STORE, SERVER, JSON)
def rotate(
    site: Site,
    name: NameArgument,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old secret is still good.")
    ] = "0s",
) -> None:
    """Give a key a new secret, and print it; the old one ends after the overlap."""
    with site.opened() as index:
        from adapters.keys.texts import read_duration

        key, secret = index.keys.rotate(name, overlap=read_duration(overlap), actor=_user())
    _print_secret(site, key, secret)


@app.command()
@acts_on(STORE, SERVER, JSON)
def block(site: Site, name: NameArgument) -> None:
    """Put a key out of force until it is unblocked; its running calls end."""
    with site.opened() as index:
        _print_status(site, index.keys.block(name, actor=_user()))


@app.command()
@acts_on(STORE, SERVER, JSON)
def unblock(site: Site, name: NameArgument) -> None:
    """Put a blocked key into force again."""
    with site.opened() as index:
        _print_status(site, index.keys.unblock(name, actor=_user()))


@app.command()
@acts_on(STORE, SERVER, JSON)
def revoke(site: Site, name: NameArgument) -> None:
    """Put a key out of force for good; its running calls end."""
    with site.opened() as index:
        _print_status(site, index.keys.revoke(name, actor=_user()))


@app.command()
@acts_on(STORE, SERVER, JSON)
def history(
    site: Site,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this key.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_LIMIT, help="Only so many, the newest. [default: all]"),
    ] = None,
) -> None:
    """Show every change of keys with its time and its actor; the newest last."""
    with site.opened() as index:
        if name is not None:
            index.keys.find(name)
        events = index.keys.list_events(name, limit)
    if site.as_json:
        site.print([event.as_json() for event in events])
    else:
        from adapters.cli.tables import print_events

        print_events(events, "key")


def _user() -> str:
    from adapters.catalog.history import current_user

    return current_user()


def _scopes(given: list[str] | None) -> "frozenset[Scope]":
    from adapters.errors import KeyInvalid, quote
    from adapters.keys.record import SCOPES

    wanted = given or ["inference"]
    for each in wanted:
        if each not in SCOPES:
            raise KeyInvalid(
                f"{quote(each)} is no scope of a key", f"it is one of {', '.join(SCOPES)}"
            )
    return frozenset(each for each in SCOPES if each in wanted)


def _print_secret(site: Site, key: "Key", secret: str) -> None:
    """The secret alone on stdout, so that it can be piped; what to know of it on stderr."""
    if not site.as_json:
        typer.echo(f"{key.name}: keep this secret, it is shown only now", err=True)
    site.print({"key": secret} | key.as_json(), secret)


def _print_status(site: Site, key: "Key") -> None:
    site.print(key.as_json(), f"{key.name} is {key.status()}")

"""`lorry adapters alias|unalias|split|rollback|pin|unpin|weight|remove|load|unload`: roll out.

Every server that shares the catalog applies a change from its next request on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.options import (
    JSON,
    SERVER,
    STORE,
    AliasArgument,
    NameArgument,
    ReferenceArgument,
    Site,
    acts_on,
)
from adapters.errors import SplitInvalid, quote
from adapters.names import MAX_VERSION, parse_reference

if TYPE_CHECKING:
    from adapters.catalog import AdapterVersion, Alias, Catalog
    from adapters.catalog.evaluations import Gate
    from adapters.client import RemoteCatalog


GateOption = Annotated[
    str | None,
    typer.Option(
        "--gate",
        metavar="METRIC",
        help="Refuse unless evaluations by this metric show that it is better (see"
        " docs/adapters.md).",
        show_default=False,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Move it whatever --gate says; the history records that and why."),
]


@acts_on(STORE, SERVER, JSON)
def alias(
    site: Site,
    name: NameArgument,
    alias: AliasArgument,
    version: Annotated[
        int, typer.Argument(metavar="VERSION", min=1, max=MAX_VERSION, help="Its number.")
    ],
    gate: GateOption = None,
    force: ForceOption = False,
) -> None:
    """Point an alias at one version."""
    with site.opened() as index:
        wanted = _make_gate(gate, force)
        _print_alias(site, index.point(name, alias, version, actor=_user(), gate=wanted))


@acts_on(STORE, SERVER)
def unalias(site: Site, name: NameArgument, alias: AliasArgument) -> None:
    """Take an alias away (`rollback` brings it back)."""
    with site.opened() as index:
        index.drop_alias(name, alias, actor=_user())


@acts_on(STORE, SERVER, JSON)
def split(
    site: Site,
    name: NameArgument,
    alias: AliasArgument,
    shares: Annotated[
        list[str], typer.Argument(metavar="VERSION=WEIGHT", help="Such as 1=90 2=10.")
    ],
    gate: GateOption = None,
    force: ForceOption = False,
) -> None:
    """Let versions share an alias's requests: the same caller stays on the same side."""
    with site.opened() as index:
        weights, wanted = _parse_shares(shares), _make_gate(gate, force)
        _print_alias(site, index.split(name, alias, weights, actor=_user(), gate=wanted))


@acts_on(STORE, SERVER, JSON)
def rollback(
    site: Site,
    name: NameArgument,
    alias: AliasArgument,
    to: Annotated[
        int | None, typer.Option(min=1, max=MAX_VERSION, help="Go back as far as this version.")
    ] = None,
) -> None:
    """Point an alias at its previous target; a second call goes one further back."""
    with site.opened() as index:
        _print_alias(site, index.rollback(name, alias, actor=_user(), to=to))


@acts_on(STORE, SERVER, JSON)
def pin(site: Site, reference: ReferenceArgument) -> None:
    """Keep a version resident once it is loaded, and from being removed."""
    with site.opened() as index:
        version = _find(index, reference)
        _print_pin(site, index.pin(version.name, version.version, actor=_user()))


@acts_on(STORE, SERVER, JSON)
def unpin(site: Site, reference: ReferenceArgument) -> None:
    """Let a version be evicted and removed like any other."""
    with site.opened() as index:
        version = _find(index, reference)
        _print_pin(site, index.unpin(version.name, version.version, actor=_user()))


@acts_on(STORE, SERVER, JSON)
def weight(
    site: Site,
    name: NameArgument,
    weight: Annotated[
        float, typer.Argument(metavar="WEIGHT", help="From 0.01 to 100; 1 is every adapter's own.")
    ],
) -> None:
    """Give an adapter more or less of a busy server than others get."""
    with site.opened() as index:
        index.weigh(name, weight, actor=_user())
    site.print({"name": name, "weight": weight}, f"{name} has weight {weight:g}")


@acts_on(STORE, SERVER, JSON)
def remove(site: Site, reference: ReferenceArgument) -> None:
    """Forget a version that no alias points at; `gc` takes its files later."""
    with site.opened() as index:
        version = _find(index, reference)
        index.remove(version.name, version.version, actor=_user())
    removed = {"removed": version.label, "digest": version.digest}
    site.print(removed, f"removed {version.label}")


@acts_on(SERVER, JSON)
def load(site: Site, reference: ReferenceArgument) -> None:
    """Load the versions that a reference means now on a running server, and wait for it."""
    with site.opened_server() as server:
        labels = server.load(parse_reference(reference))
    site.print({"loaded": labels}, *(f"loaded {label}" for label in labels))


@acts_on(SERVER, JSON)
def unload(site: Site, reference: ReferenceArgument) -> None:
    """Unload them on a running server; the next call loads them again."""
    with site.opened_server() as server:
        labels = server.unload(parse_reference(reference))
    site.print({"unloaded": labels}, *(f"unloaded {label}" for label in labels))


def _make_gate(metric: str | None, force: bool) -> "Gate | None":
    from adapters.catalog.evaluations import Gate

    if metric is not None:
        return Gate(metric, force)
    if force:
        raise typer.BadParameter("there is no --gate to pass over", param_hint="--force")
    return None


def _user() -> str:
    from adapters.catalog.history import current_user

    return current_user()


def _find(index: "Catalog | RemoteCatalog", reference: str) -> "AdapterVersion":
    return index.resolve_only(parse_reference(reference))


def _parse_shares(shares: Sequence[str]) -> dict[int, int]:
    weights: dict[int, int] = {}
    for share in shares:
        version, _, weight = share.partition("=")
        if not (_is_number(version) and _is_number(weight)) or int(version) in weights:
            raise SplitInvalid(
                f"{quote(share)} is not a version that is named once and its weight",
                "write VERSION=WEIGHT for each version, such as 1=90 2=10",
            )
        weights[int(version)] = int(weight)
    return weights


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _print_alias(site: Site, alias: "Alias") -> None:
    from adapters.cli.tables import describe_share

    total = sum(side.weight for side in alias.targets)
    sides = (
        f"{alias.name}@{side.version}{describe_share(side.weight, total)}" for side in alias.targets
    )
    site.print(alias.as_json(), f"{alias.label} -> {', '.join(sides)}")


def _print_pin(site: Site, version: "AdapterVersion") -> None:
    state = "pinned" if version.pinned else "not pinned"
    site.print(version.as_json(), f"{version.label} is {state}")

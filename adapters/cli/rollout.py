"""`lorry adapters alias|unalias|split|rollback|pin|unpin|remove`: what names mean, and change.

A change holds from the next request of every server that shares the catalog.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.options import (
    DEFAULT_STORE,
    AliasArgument,
    CatalogOption,
    JsonOption,
    NameArgument,
    ReferenceArgument,
    StoreOption,
    TokenFileOption,
    UrlOption,
    opened,
    print_json,
)
from adapters.errors import SplitInvalid, quote
from adapters.names import MAX_VERSION

if TYPE_CHECKING:
    from adapters.catalog import AdapterVersion, Alias, Catalog
    from adapters.client import RemoteCatalog


def alias(
    name: NameArgument,
    alias: AliasArgument,
    version: Annotated[
        int, typer.Argument(metavar="VERSION", min=1, max=MAX_VERSION, help="Its number.")
    ],
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at one version."""
    with opened(store, catalog, url, token_file) as index:
        _print_alias(index.point(name, alias, version, actor=_user()), as_json)


def unalias(
    name: NameArgument,
    alias: AliasArgument,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Take an alias away (`rollback` brings it back)."""
    with opened(store, catalog, url, token_file) as index:
        index.drop_alias(name, alias, actor=_user())


def split(
    name: NameArgument,
    alias: AliasArgument,
    shares: Annotated[
        list[str], typer.Argument(metavar="VERSION=WEIGHT", help="Such as 1=90 2=10.")
    ],
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let versions share an alias's requests: the same caller stays on the same side."""
    with opened(store, catalog, url, token_file) as index:
        weights = _parse_shares(shares)
        _print_alias(index.split(name, alias, weights, actor=_user()), as_json)


def rollback(
    name: NameArgument,
    alias: AliasArgument,
    to: Annotated[
        int | None, typer.Option(min=1, max=MAX_VERSION, help="Go back as far as this version.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at what it pointed at before; twice goes two back."""
    with opened(store, catalog, url, token_file) as index:
        _print_alias(index.rollback(name, alias, actor=_user(), to=to), as_json)


def pin(
    reference: ReferenceArgument,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a version resident once it is loaded, and from being removed."""
    with opened(store, catalog, url, token_file) as index:
        version = _find(index, reference)
        _print_pin(index.pin(version.name, version.version, actor=_user()), as_json)


def unpin(
    reference: ReferenceArgument,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a version be evicted and removed like any other."""
    with opened(store, catalog, url, token_file) as index:
        version = _find(index, reference)
        _print_pin(index.unpin(version.name, version.version, actor=_user()), as_json)


def remove(
    reference: ReferenceArgument,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget a version that no alias points at; `gc` takes its files later."""
    with opened(store, catalog, url, token_file) as index:
        version = _find(index, reference)
        index.remove(version.name, version.version, actor=_user())
    if as_json:
        print_json({"removed": version.label, "digest": version.digest})
    else:
        print(f"removed {version.label}")


def _user() -> str:
    from adapters.catalog.history import current_user

    return current_user()


def _find(index: "Catalog | RemoteCatalog", reference: str) -> "AdapterVersion":
    from adapters.names import parse_reference

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


def _print_alias(alias: "Alias", as_json: bool) -> None:
    if as_json:
        print_json(alias.as_json())
        return
    from adapters.cli.tables import describe_share

    total = sum(target.weight for target in alias.targets)
    sides = (
        f"{alias.name}@{target.version}{describe_share(target.weight, total)}"
        for target in alias.targets
    )
    print(f"{alias.label} -> {', '.join(sides)}")


def _print_pin(version: "AdapterVersion", as_json: bool) -> None:
    if as_json:
        print_json(version.as_json())
    else:
        print(f"{version.label} is {'pinned' if version.pinned else 'not pinned'}")

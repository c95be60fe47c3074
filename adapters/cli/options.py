"""What all commands share: their options, how they reach the catalog, and how they fail."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.errors import (
    AdapterError,
    AdapterNotFound,
    AliasIsSplit,
    AliasNotFound,
    AmbiguousDigest,
    BadName,
    BadReference,
    BaseUnreadable,
    CheckpointInvalid,
    NothingToRollBack,
    SourceNotFound,
    SourceUnsupported,
    SplitInvalid,
    StoreUnreadable,
    VersionInUse,
)

if TYPE_CHECKING:
    from adapters.catalog import Catalog

# What the caller can mend by calling differently exits 2; a failed operation exits 1.
CALLER_ERRORS = (
    BadName,
    BadReference,
    AdapterNotFound,
    AliasIsSplit,
    AliasNotFound,
    AmbiguousDigest,
    BaseUnreadable,
    CheckpointInvalid,
    NothingToRollBack,
    SourceNotFound,
    SourceUnsupported,
    SplitInvalid,
    StoreUnreadable,
    VersionInUse,
)

DEFAULT_STORE = Path(".lorry/store")
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="LORRY_STORE", help="The store's folder.")
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        envvar="LORRY_CATALOG",
        help="URL of a catalog in PostgreSQL. [default: the store's own]",
        show_default=False,
    ),
]
BaseOption = Annotated[Path, typer.Option(help="The folder of the model it was trained on.")]
BaseNameOption = Annotated[
    str | None,
    typer.Option(help="What the base is called where it is served. [default: its folder's name]"),
]
AliasOption = Annotated[
    list[str] | None,
    typer.Option(help="Point this alias at it; may be repeated. [default: stable]"),
]
MaxRankOption = Annotated[
    int | None, typer.Option(min=1, help="Refuse a larger rank than the servers make room for.")
]
MismatchOption = Annotated[
    bool,
    typer.Option("--allow-base-mismatch", help="Although its config names another base."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name.")]
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")]
ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REF", help="NAME, NAME@VERSION, NAME@ALIAS or NAME@sha256:...")
]


@contextmanager
def opened(store: Path, catalog: str | None) -> "Iterator[Catalog]":
    """The catalog of an existing store; its errors, and those of the block, are reported."""
    with reported():
        from adapters.catalog import Catalog

        with Catalog.open(store, catalog, create=False) as found:
            yield found


@contextmanager
def reported() -> Iterator[None]:
    """Turn an AdapterError into one clear line on stderr, its problems, and an exit code."""
    try:
        yield
    except AdapterError as error:
        typer.echo(f"error: {error.message}; {error.hint} ({error.code})", err=True)
        for problem in error.problems if isinstance(error, CheckpointInvalid) else ():
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(2 if isinstance(error, CALLER_ERRORS) else 1) from error


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))

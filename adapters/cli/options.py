"""What all commands share: their options, how they reach the catalog, and how they fail."""

import json
import os
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
    BadServerAddress,
    BaseUnreadable,
    CheckpointInvalid,
    NothingToRollBack,
    OtherBase,
    ServerRefused,
    SourceNotFound,
    SourceUnsupported,
    SplitInvalid,
    StoreUnreadable,
    TokenMissing,
    VersionInUse,
    quote,
)

if TYPE_CHECKING:
    from adapters.catalog import Catalog
    from adapters.client import RemoteCatalog

# What the caller can mend by calling differently exits 2; a failed operation exits 1.
CALLER_ERRORS = (
    BadName,
    BadReference,
    BadServerAddress,
    AdapterNotFound,
    AliasIsSplit,
    AliasNotFound,
    AmbiguousDigest,
    BaseUnreadable,
    CheckpointInvalid,
    NothingToRollBack,
    OtherBase,
    SourceNotFound,
    SourceUnsupported,
    SplitInvalid,
    StoreUnreadable,
    TokenMissing,
    VersionInUse,
)

TOKEN_VARIABLE = "LORRY_ADMIN_TOKEN"
MAX_TOKEN_BYTES = 4096


def _in_one_place(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Refuse --store beside a server: a change would be made where it was not meant to be.

    Called for each of them, as the last one read knows of the others.
    """
    given = context.params | {str(parameter.name): value}
    for name in ("store", "catalog"):
        source = context.get_parameter_source(name)
        if given.get("url") and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"--{name} and --url (or LORRY_URL) exclude each other; --url '' takes the store"
            )
    return value


DEFAULT_STORE = Path(".lorry/store")
StoreOption = Annotated[
    Path,
    typer.Option(
        "--store", envvar="LORRY_STORE", help="The store's folder.", callback=_in_one_place
    ),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        envvar="LORRY_CATALOG",
        help="URL of a catalog in PostgreSQL. [default: the store's own]",
        show_default=False,
        callback=_in_one_place,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="LORRY_URL",
        help="Act on a running server, such as http://127.0.0.1:8000, instead of the store.",
        callback=_in_one_place,
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--admin-token-file",
        envvar="LORRY_ADMIN_TOKEN_FILE",
        help=f"File with the server's admin token. [default: the variable {TOKEN_VARIABLE}]",
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
def opened(
    store: Path, catalog: str | None, url: str | None, token_file: Path | None
) -> "Iterator[Catalog | RemoteCatalog]":
    """The catalog of a running server, or of an existing store; errors are reported."""
    if url:
        with opened_server(url, token_file) as server:
            yield server
    else:
        with opened_store(store, catalog) as index:
            yield index


@contextmanager
def opened_server(url: str, token_file: Path | None) -> "Iterator[RemoteCatalog]":
    """The catalog of a running server; its errors, and those of the block, are reported."""
    with reported():
        from adapters.admin_http import AdminHttp
        from adapters.client import RemoteCatalog

        yield RemoteCatalog(AdminHttp(url, _read_token(token_file)))


def _read_token(path: Path | None) -> str:
    if path is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TokenMissing(
            f"the file of the admin token, {quote(str(path))}: {reason}",
            "check the path and its rights",
        ) from error


@contextmanager
def opened_store(
    store: Path, catalog: str | None, for_objects: bool = False
) -> "Iterator[Catalog]":
    """The catalog of an existing store; its errors, and those of the block, are reported."""
    with reported():
        from adapters.catalog import Catalog

        with Catalog.open(store, catalog, create=False, for_objects=for_objects) as found:
            yield found


@contextmanager
def reported() -> Iterator[None]:
    """Turn an AdapterError into one clear line on stderr, its problems, and an exit code."""
    try:
        yield
    except AdapterError as error:
        typer.echo(f"error: {AdapterError.__str__(error)} ({error.code})", err=True)
        for problem in error.problems if isinstance(error, CheckpointInvalid) else ():
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(2 if _is_callers(error) else 1) from error
    except UnicodeEncodeError as error:  # bytes of the command line that are no text
        said = f"{quote(str(error.object))} is not valid UTF-8; write it again"
        typer.echo(f"error: {said} ({BadName.code})", err=True)
        raise typer.Exit(2) from error


def _is_callers(error: AdapterError) -> bool:
    if isinstance(error, ServerRefused):
        return error.status < 500
    return isinstance(error, CALLER_ERRORS)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))

"""Shared by the commands: options, access to the catalog, and error reports."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.errors import (
    AdapterError,
    AdapterNotFound,
    AliasIsSplit,
    AliasNotFound,
    AmbiguousDigest,
    BadField,
    BadMoment,
    BadName,
    BadReference,
    BadServerAddress,
    BaseUnreadable,
    CheckpointInvalid,
    EvaluationInvalid,
    GateRefused,
    KeyExists,
    KeyInvalid,
    KeyIsRevoked,
    KeyNotFound,
    LimitNotFound,
    NothingToRollBack,
    OtherBase,
    ServerRefused,
    SourceNotFound,
    SourceUnsupported,
    SplitInvalid,
    StoreUnreadable,
    SumInvalid,
    TokenMissing,
    VersionInUse,
    WeightInvalid,
    quote,
)

if TYPE_CHECKING:
    from adapters.catalog import Catalog
    from adapters.client import RemoteCatalog
    from adapters.store import Place

# Exit code 2: the caller can correct the call. Exit code 1: the operation failed.
CALLER_ERRORS = (
    BadField,
    BadMoment,
    BadName,
    BadReference,
    BadServerAddress,
    AdapterNotFound,
    AliasIsSplit,
    AliasNotFound,
    AmbiguousDigest,
    BaseUnreadable,
    CheckpointInvalid,
    EvaluationInvalid,
    GateRefused,
    KeyExists,
    KeyInvalid,
    KeyIsRevoked,
    KeyNotFound,
    LimitNotFound,
    NothingToRollBack,
    OtherBase,
    SourceNotFound,
    SourceUnsupported,
    SplitInvalid,
    StoreUnreadable,
    SumInvalid,
    TokenMissing,
    VersionInUse,
    WeightInvalid,
)

TOKEN_VARIABLE = "LORRY_ADMIN_TOKEN"
KEY_VARIABLE = "LORRY_API_KEY"  # a key of scope admin does as well
MAX_TOKEN_BYTES = 4096


def _in_one_place(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Refuse --store together with a server: the change would go to only one of them.

    Each of these options calls it, as only the last one that is read sees the others.
    """
    given = context.params | {str(parameter.name): value}
    for name in ("store", "catalog"):
        source = context.get_parameter_source(name)
        if given.get("url") and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"--{name} and --url (or LORRY_URL) exclude each other; --url '' takes the store"
            )
    return value


StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="LORRY_STORE",
        metavar="PATH|URL",
        help="The store's folder, or a bucket: s3://BUCKET/PREFIX, gs://..., az://...",
        callback=_in_one_place,
    ),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        envvar="LORRY_CATALOG",
        help="URL of a catalog in PostgreSQL, which a bucket needs. [default: the store's own]",
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
RpmOption = Annotated[int | None, typer.Option(min=1, help="Requests a minute.")]
TpmOption = Annotated[int | None, typer.Option(min=1, help="Tokens a minute.")]
InFlightOption = Annotated[int | None, typer.Option(min=1, help="Calls at once.")]
BudgetOption = Annotated[
    str | None,
    typer.Option(metavar="N/day|N/month", help="Tokens in all, such as 50M/month."),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--admin-token-file",
        envvar="LORRY_ADMIN_TOKEN_FILE",
        help="File with the server's admin token, or a key of scope admin. [default: the variable"
        f" {TOKEN_VARIABLE}, else {KEY_VARIABLE}]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name.")]
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")]
ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REF", help="NAME, NAME@VERSION, NAME@ALIAS or NAME@sha256:...")
]


@dataclass(frozen=True, slots=True)
class Site:
    """The values of the options that `acts_on` adds: the store or server, and the output form."""

    store: str = ".lorry/store"
    catalog: str | None = None
    url: str | None = None
    token_file: Path | None = None
    as_json: bool = False

    @property
    def place(self) -> "Place":
        from adapters.store import parse_place

        return parse_place(self.store)

    @contextmanager
    def opened(self, *, create: bool = False) -> "Iterator[Catalog | RemoteCatalog]":
        """The catalog of the running server, or of the store, which must exist unless `create`.

        Its errors, and those of the block, are reported (as in the two methods below).
        """
        if self.url:
            with self.opened_server() as server:
                yield server
        else:
            with self.opened_store(create=create) as index:
                yield index

    @contextmanager
    def opened_store(self, *, create: bool = False) -> "Iterator[Catalog]":
        """The catalog of the store; with `create` it is made if it is not there."""
        with reported():
            from adapters.catalog import Catalog

            with Catalog.open(self.place, self.catalog, create=create) as index:
                yield index

    @contextmanager
    def opened_server(self) -> "Iterator[RemoteCatalog]":
        """The catalog of the running server."""
        with reported():
            from adapters.admin_http import AdminHttp
            from adapters.client import RemoteCatalog

            if not self.url:
                said = "a store has nothing in memory: name a running server"
                raise typer.BadParameter(said, param_hint="--url")
            yield RemoteCatalog(AdminHttp(self.url, _read_token(self.token_file)))

    def print(self, document: Any, *lines: str) -> None:
        """The document with --json, else the lines."""
        if self.as_json:
            print(json.dumps(document, indent=2))
            return
        for line in lines:
            print(line)


STORE = {"store": StoreOption, "catalog": CatalogOption}
SERVER = {"url": UrlOption, "token_file": TokenFileOption}
JSON = {"as_json": JsonOption}


def acts_on(*groups: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add groups of options to a command; its first parameter is the Site made of them."""
    kinds = {name: kind for group in groups for name, kind in group.items()}
    defaults = asdict(Site())

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            command(Site(**{name: values.pop(name) for name in kinds}), **values)

        whole = signature(command)
        _, *own = whole.parameters.values()
        added = [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=defaults[name])
            for name, kind in kinds.items()
        ]
        # Where Typer looks for a command's parameters.
        run.__dict__["__signature__"] = whole.replace(parameters=[*own, *added])
        run.__annotations__ = {each.name: each.annotation for each in (*own, *added)}
        return run

    return decorate


def _read_token(path: Path | None) -> str:
    if path is None:
        given = os.environ.get(TOKEN_VARIABLE, "").strip()
        return given or os.environ.get(KEY_VARIABLE, "").strip()
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
def reported() -> Iterator[None]:
    """Report an AdapterError as one line on stderr, with its problems, and an exit code."""
    try:
        yield
    except AdapterError as error:
        typer.echo(f"error: {AdapterError.__str__(error)} ({error.code})", err=True)
        for problem in error.problems if isinstance(error, CheckpointInvalid) else ():
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(2 if _is_callers(error) else 1) from error
    except UnicodeEncodeError as error:  # a command line that is not UTF-8
        said = f"{quote(str(error.object))} is not valid UTF-8; write it again"
        typer.echo(f"error: {said} ({BadName.code})", err=True)
        raise typer.Exit(2) from error


def _is_callers(error: AdapterError) -> bool:
    if isinstance(error, ServerRefused):
        return error.status < 500
    return isinstance(error, CALLER_ERRORS)

"""The command line over a store: `lorry adapters publish|watch|list|show|verify`.

Prints tables for people and, with --json, one JSON document for scripts. What it needs is
imported inside the commands, so that --help is quick.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.errors import (
    AdapterError,
    AdapterNotFound,
    AmbiguousDigest,
    BadName,
    BadReference,
    BaseUnreadable,
    CheckpointInvalid,
    SourceNotFound,
    SourceUnsupported,
    StoreUnreadable,
)

if TYPE_CHECKING:
    from adapters.audit import Finding
    from adapters.catalog import AdapterVersion

app = typer.Typer(
    name="adapters",
    help="Publish adapters to a store, and see what is in it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# What the caller can mend by calling differently exits 2; a failed operation exits 1.
CALLER_ERRORS = (
    BadName,
    BadReference,
    AdapterNotFound,
    AmbiguousDigest,
    BaseUnreadable,
    CheckpointInvalid,
    SourceNotFound,
    SourceUnsupported,
    StoreUnreadable,
)

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="LORRY_STORE", help="The store's folder.")
]
BaseOption = Annotated[Path, typer.Option(help="The folder of the model it was trained on.")]
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
DEFAULT_STORE = Path(".lorry/store")
PIPE_WIDTH = 500


@app.command()
def publish(
    source: Annotated[
        str,
        typer.Argument(
            help="The folder that PEFT's save_pretrained wrote, hf://ORG/REPO[@REVISION],"
            " or a folder's address (s3://, gs://, az://, https://)."
        ),
    ],
    name: Annotated[str, typer.Option(help="The adapter's name.")],
    base: BaseOption,
    alias: AliasOption = None,
    max_rank: MaxRankOption = None,
    allow_base_mismatch: MismatchOption = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check an adapter and publish it as the next version of its name."""
    with reported():
        from adapters.names import STABLE
        from adapters.peft_config import MAX_RANK
        from adapters.publish import publish

        version = publish(
            source,
            name=name,
            store=store,
            base=base,
            aliases=alias or (STABLE,),
            max_rank=max_rank or MAX_RANK,
            allow_base_mismatch=allow_base_mismatch,
        )
        if as_json:
            _print_json(version.as_json())
        else:
            pointing = ", ".join(version.aliases)
            print(f"{version.label} {version.digest} ({pointing})")


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Sub-folders are published under their names.")],
    base: BaseOption,
    alias: AliasOption = None,
    max_rank: MaxRankOption = None,
    allow_base_mismatch: MismatchOption = False,
    interval: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, then end.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Publish what is dropped into a folder; with --once, exits 1 unless all of it was."""
    from adapters.names import STABLE
    from adapters.peft_config import MAX_RANK
    from adapters.publish import publish
    from adapters.watch import Sighting, Watcher

    unpublished = []

    def report(seen: Sighting) -> None:
        if seen.status != "published":
            unpublished.append(seen)
        typer.echo(f"{seen.status:10}{seen.name} {seen.message}", err=seen.version is None)

    options: dict[str, Any] = {
        "store": store,
        "base": base,
        "aliases": alias or (STABLE,),
        "max_rank": max_rank or MAX_RANK,
        "allow_base_mismatch": allow_base_mismatch,
    }
    watcher = Watcher(
        folder, lambda path, name: publish(path, name=name, if_new=True, **options), report
    )
    looks = range(2) if once else itertools.count()
    for look in looks:
        if look:
            time.sleep(interval)
        watcher.poll()
    if unpublished:
        raise typer.Exit(1)


@app.command("list")
def list_(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List every version of every adapter."""
    with reported():
        from adapters.catalog import Catalog

        with Catalog.open(store, create=False) as catalog:
            versions = catalog.list_versions()
        if as_json:
            _print_json([version.as_json() for version in versions])
        else:
            _print_versions(versions)


@app.command()
def show(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="NAME, NAME@VERSION, NAME@ALIAS or NAME@sha256:...")
    ],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show the one version that a reference means now."""
    with reported():
        from adapters.catalog import Catalog
        from adapters.names import parse_reference
        from adapters.store import Store

        wanted = parse_reference(reference)
        with Catalog.open(store, create=False) as catalog:
            version = catalog.resolve(wanted)
        facts = version.as_json() | {"path": str(Store(store).path(version.digest))}
        if as_json:
            _print_json(facts)
        else:
            _print_facts(facts)


@app.command()
def verify(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Read every object again; exits 1 if one is damaged or missing."""
    with reported():
        from dataclasses import asdict

        from adapters.audit import audit
        from adapters.catalog import Catalog
        from adapters.store import Store

        with Catalog.open(store, create=False) as catalog:
            findings = audit(Store(store), catalog)
        if as_json:
            _print_json([asdict(finding) for finding in findings])
        else:
            for finding in findings:
                print(_describe(finding))
    if any(finding.is_bad for finding in findings):
        raise typer.Exit(1)


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


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def _describe(finding: "Finding") -> str:
    labels = " ".join(finding.labels) or "-"
    line = f"{finding.status:8}{finding.digest} {labels}"
    return f"{line} {finding.detail}" if finding.detail else line


def _print_versions(versions: "list[AdapterVersion]") -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table(box=None)
    for heading in ("adapter", "aliases", "digest", "rank", "size", "base", "published (UTC)"):
        table.add_column(heading, no_wrap=True)
    for version in versions:
        table.add_row(
            version.label,
            ", ".join(version.aliases),
            version.digest[:19],
            str(version.rank),
            decimal(version.size_bytes),
            version.base,
            f"{version.created_at:%Y-%m-%d %H:%M}",
        )
    # Into a pipe, lines are as long as they need to be.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)


def _print_facts(facts: dict[str, Any]) -> None:
    provenance = facts.pop("provenance")
    for key, value in facts.items():
        print(f"{key:12}{', '.join(value) if isinstance(value, list) else value}")
    if provenance is not None:
        print(f"provenance  {json.dumps(provenance, indent=2)}")

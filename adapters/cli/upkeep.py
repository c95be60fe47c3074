"""`lorry adapters verify|gc`: is the store sound, and what in it is needed by nobody."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.options import (
    DEFAULT_STORE,
    CatalogOption,
    JsonOption,
    StoreOption,
    opened_store,
    print_json,
)

if TYPE_CHECKING:
    from adapters.upkeep import Finding

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MAX_AGE = timedelta(days=36_500)
DURATION = re.compile(r"([0-9]{1,6})([smhd])")


def verify(
    store: StoreOption = DEFAULT_STORE, catalog: CatalogOption = None, as_json: JsonOption = False
) -> None:
    """Read every object again; exits 1 if one is damaged or missing."""
    with opened_store(store, catalog, for_objects=True) as index:
        from dataclasses import asdict

        from adapters.store import Store
        from adapters.upkeep import audit

        findings = audit(Store(store), index)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(_describe(finding))
    if any(finding.is_bad for finding in findings):
        raise typer.Exit(1)


def gc(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Spare what is younger: 90s, 30m, 1h, 7d.")
    ] = "1h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    store: StoreOption = DEFAULT_STORE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove objects that no version names, and what cut-off work left behind."""
    min_age = _parse_age(older_than)
    with opened_store(store, catalog) as index:
        from dataclasses import asdict

        from rich.filesize import decimal

        from adapters.store import Store
        from adapters.upkeep import collect

        found = collect(Store(store), index, min_age=min_age, dry_run=dry_run)
    if as_json:
        print_json(asdict(found) | {"dry_run": dry_run})
        return
    for what in (*found.orphans, *found.leftovers):
        print(what)
    would = "would free" if dry_run else "freed"
    count = len(found.orphans) + len(found.leftovers)
    spared = f"; {found.too_young} too young" if found.too_young else ""
    print(f"{would} {decimal(found.freed_bytes)} of {count}{spared}")


def _parse_age(text: str) -> timedelta:
    match = DURATION.fullmatch(text)
    if not match:
        raise typer.BadParameter("write a number and s, m, h or d, such as 1h", param_hint="AGE")
    age = timedelta(**{UNITS[match[2]]: int(match[1])})
    if age > MAX_AGE:
        raise typer.BadParameter(f"at most {MAX_AGE.days}d", param_hint="AGE")
    return age


def _describe(finding: "Finding") -> str:
    labels = " ".join(finding.labels) or "-"
    line = f"{finding.status:8}{finding.digest} {labels}"
    return f"{line} {finding.detail}" if finding.detail else line

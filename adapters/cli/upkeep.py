"""`lorry adapters verify|gc|backup|restore`: check the store, clean it, copy it as a whole."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.options import JSON, STORE, Site, acts_on, reported

if TYPE_CHECKING:
    from adapters.upkeep import Finding

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MAX_AGE = timedelta(days=36_500)
DURATION = re.compile(r"([0-9]{1,6})([smhd])")


@acts_on(STORE, JSON)
def verify(site: Site) -> None:
    """Read every object again; exits 1 if one is damaged or missing."""
    with site.opened_store() as index:
        from dataclasses import asdict

        from adapters.store import open_store
        from adapters.upkeep import audit

        findings = audit(open_store(site.place), index)
    site.print([asdict(finding) for finding in findings], *map(_describe, findings))
    if any(finding.is_bad for finding in findings):
        raise typer.Exit(1)


@acts_on(STORE, JSON)
def gc(
    site: Site,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE",
            help="Keep garbage younger than this: 90s, 30m, 1h, 7d; of a bucket 1h at least.",
        ),
    ] = "1h",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be removed.")
    ] = False,
) -> None:
    """Remove objects that no version names, and leftovers of interrupted work."""
    from adapters.upkeep import SAFE_AGE, collect

    min_age = _parse_age(older_than)
    if min_age < SAFE_AGE and not isinstance(site.place, Path):
        raise typer.BadParameter(
            "at least 1h for a bucket, which has no locks: younger objects may be of a publication"
            " under way",
            param_hint="--older-than",
        )
    with site.opened_store() as index:
        from dataclasses import asdict

        from rich.filesize import decimal

        from adapters.store import open_store

        store = open_store(site.place)
        found = collect(store, index, min_age=min_age, dry_run=dry_run)
    removed = (*found.orphans, *found.leftovers)
    would = "would free" if dry_run else "freed"
    spared = f"; {found.too_young} too young" if found.too_young else ""
    total = f"{would} {decimal(found.freed_bytes)} of {len(removed)}{spared}"
    site.print(asdict(found) | {"dry_run": dry_run}, *removed, total)


@acts_on(STORE, JSON)
def backup(
    site: Site,
    target: Annotated[Path, typer.Argument(help="Folder of the backup, which is a store too.")],
) -> None:
    """Copy the catalog and its objects to a folder, while servers use the store."""
    _copy(site, lambda store: (store, target), mend=False)


@acts_on(STORE, JSON)
def restore(
    site: Site,
    source: Annotated[Path, typer.Argument(help="The folder that `backup` wrote.")],
) -> None:
    """Bring back the catalog and objects of a backup, also in place of damaged objects.

    Running servers follow within a second.
    """
    _copy(site, lambda store: (source, store), mend=True)


def _copy(site: Site, way: Callable[[Path], tuple[Path, Path]], *, mend: bool) -> None:
    """Copy a store; `way` returns from where to where, for the folder of the store."""
    store = site.place
    if site.catalog or not isinstance(store, Path):
        raise typer.BadParameter(
            "back up a catalog in PostgreSQL with pg_dump, then copy the store's folder `objects`"
            " (of a bucket with its own tools: docs/operations.md)",
            param_hint="--catalog" if site.catalog else "--store",
        )
    source, target = way(store)
    with reported():
        from dataclasses import asdict

        from adapters.backup import copy_store

        done = copy_store(source, target, mend=mend)
    total = f"copied the catalog and {len(done.objects)} objects to {target}"
    there = f"; {done.already_there} were there already"
    mended = f", {len(done.replaced)} were damaged and are replaced" if done.replaced else ""
    site.print(asdict(done), *done.absent, total + there + mended)
    if done.absent:
        raise typer.Exit(1)


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

"""Verifies and cleans a store: compares objects with the catalog, and collects garbage.

Garbage is an object that no version names, or a leftover of interrupted work. Publishers hold the
store's lock shared until their object has its version, and collection holds it exclusively, so
nothing needed is removed. The minimum age covers what no lock shows: an engine may still be about
to load a version that was just removed. Ages are by the clock of the store's file system, times of
removals are the catalog's.

A bucket has no locks. There nothing younger than SAFE_AGE is garbage: a publisher sends every file
of its object anew and enters the version right after the last one. Bytes that were garbage before
may be published in the very moment in which they are deleted; so that is done while the catalog
takes no change and has no version of them, and who enters one later looks whether they are there.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from adapters.catalog import Catalog, history
from adapters.errors import ObjectDamaged, ObjectMissing, quote, unwritable
from adapters.store import AnyStore, Store
from adapters.store.bucket import File
from adapters.store.shared import SharedStore

MIN_AGE = timedelta(hours=1)
SAFE_AGE = timedelta(hours=1)  # of what is in a bucket


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one object. An orphan is intact, but no version names it: harmless."""

    digest: str
    status: Literal["ok", "orphan", "damaged", "missing"]
    labels: tuple[str, ...]
    detail: str = ""

    @property
    def is_bad(self) -> bool:
        return self.status in ("damaged", "missing")


def audit(store: AnyStore, catalog: Catalog) -> list[Finding]:
    """Read every object again, and look for the object of every version. Changes nothing."""
    # Objects first, so that one that is published meanwhile does not look like an orphan.
    digests = set(store.digests())
    labels: dict[str, list[str]] = {}
    for version in catalog.list_versions():
        labels.setdefault(version.digest, []).append(version.label)
    everything = sorted(digests | labels.keys())
    return [_examine(store, digest, tuple(labels.get(digest, ()))) for digest in everything]


def _examine(store: AnyStore, digest: str, labels: tuple[str, ...]) -> Finding:
    try:
        store.verify_original(digest)
    except ObjectMissing as error:
        return Finding(digest, "missing", labels, error.message)
    except ObjectDamaged as error:
        return Finding(digest, "damaged", labels, error.message)
    return Finding(digest, "ok" if labels else "orphan", labels)


@dataclass(frozen=True, slots=True)
class Collected:
    """The removed garbage (in a dry run: to remove), and the number of candidates too young."""

    orphans: tuple[str, ...]
    leftovers: tuple[str, ...]
    freed_bytes: int
    too_young: int


def collect(
    store: AnyStore, catalog: Catalog, *, min_age: timedelta = MIN_AGE, dry_run: bool = False
) -> Collected:
    """Remove garbage older than `min_age`, and in a bucket SAFE_AGE; with `dry_run` only find it.

    Raises StoreBusy while publishers are at work, StoreUnwritable, or StoreUnreadable as
    Catalog.check_collectable does.
    """
    if isinstance(store, SharedStore):
        return _collect_shared(store, catalog, max(min_age, SAFE_AGE), dry_run=dry_run)
    with store.alone(), _reported(store):
        digests = [*store.digests()]
        if digests:
            catalog.check_collectable(store.root)
        named = {version.digest for version in catalog.list_versions()}
        orphans = {store.path(each): each for each in digests if each not in named}
        candidates = [*orphans, *store.leftovers()]
        old_since = store.now() - min_age.total_seconds()
        just_removed = _just_removed(catalog, min_age)
        old = [
            path
            for path in candidates
            if path.lstat().st_mtime <= old_since and orphans.get(path) not in just_removed
        ]
        freed = sum(map(_size, old))
        if not dry_run:
            for path in old:
                _remove(store.put_aside(path) if path in orphans else path)
    return Collected(
        orphans=tuple(orphans[path] for path in old if path in orphans),
        leftovers=tuple(path.name for path in old if path not in orphans),
        freed_bytes=freed,
        too_young=len(candidates) - len(old),
    )


def _collect_shared(
    store: SharedStore, catalog: Catalog, min_age: timedelta, *, dry_run: bool
) -> Collected:
    folders = store.folders()
    if folders:
        catalog.check_collectable(store.bucket)
    named = {version.digest for version in catalog.list_versions()}
    unnamed = {digest: files for digest, files in folders.items() if digest not in named}
    old_since = store.bucket.now() - min_age.total_seconds()
    just_removed = _just_removed(catalog, min_age)
    removed = {
        digest: files
        for digest, files in unnamed.items()
        if digest not in just_removed
        and _is_old(files, old_since)
        and (dry_run or _remove_shared(store, catalog, digest, old_since))
    }
    freed = sum(file.size for files in removed.values() for file in files.values())
    return Collected(tuple(removed), (), freed, len(unnamed) - len(removed))


def _remove_shared(store: SharedStore, catalog: Catalog, digest: str, old_since: float) -> bool:
    with catalog.without(digest) as is_unnamed:
        if not is_unnamed or not _is_old(store.look_again(digest), old_since):
            return False
        store.remove(digest)
    return True


def _is_old(files: Mapping[str, File], since: float) -> bool:
    return all(file.changed_at is not None and file.changed_at <= since for file in files.values())


def _just_removed(catalog: Catalog, min_age: timedelta) -> set[str]:
    """The digests whose version was removed less than `min_age` ago."""
    since = datetime.now(UTC) - min_age
    return {
        event.detail["digest"]
        for event in catalog.list_events()
        if event.action == history.REMOVED and event.happened_at > since
    }


def _size(path: Path) -> int:
    files = [path] if path.is_symlink() or not path.is_dir() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _reported(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(
            f"cleaning up the store {quote(str(store.root))} failed",
            error,
            "nothing that is needed was removed: check its rights, then try again",
        ) from error

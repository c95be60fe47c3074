"""Copies a store as a whole, to back it up or to bring it back, while both may be in use.

The copy of the catalog is taken first, so that all objects it names exist, and put in place last,
so that the target never names an object that it lacks. Knows nothing of databases on a server.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapters.catalog import Catalog
from adapters.catalog.usage import book_path
from adapters.errors import BadName, ObjectDamaged, ObjectMissing, quote, unwritable
from adapters.store import Store

USAGE = book_path(Path("catalog.db")).name


@dataclass(frozen=True, slots=True)
class Copied:
    """The objects that the target lacked, the number of those it had, why others are absent, and
    those that replace damaged ones."""

    objects: tuple[str, ...]
    already_there: int
    absent: tuple[str, ...]
    replaced: tuple[str, ...] = ()


def copy_store(store: Path, target: Path, *, mend: bool = False) -> Copied:
    """Make `target` hold the catalog of `store`, its usage and every object that it names.

    Objects are verified on the way; one that is missing or damaged is left out and reported. With
    `mend` those that the target has are read again too, and damaged ones are replaced. Raises an
    AdapterError, also where the target is the store of another catalog.
    """
    source, copy = Store(store), Store(target)
    if copy.root == source.root or copy.root.is_relative_to(source.root):
        raise BadName(f"{quote(str(target))} is in the store itself", "name another folder")
    with Catalog.open(store, create=False) as catalog:
        catalog.check()
        catalog.claim(target)
        try:
            with copy.in_use(), tempfile.TemporaryDirectory(dir=copy.root / "tmp") as scratch:
                snapshot = Path(scratch)
                catalog.copy_to(snapshot / "catalog.db")
                done = _copy_objects(source, copy, snapshot, mend)
                if catalog.usage.copy_to(snapshot / USAGE):
                    _put_in_place(snapshot / USAGE, copy.root / USAGE)
                _put_in_place(snapshot / "catalog.db", copy.root / "catalog.db")
        except OSError as error:
            said = f"copying to {quote(str(target))} failed"
            raise unwritable(said, error, "free space there, then try again") from error
    return done


def _copy_objects(source: Store, copy: Store, snapshot: Path, mend: bool) -> Copied:
    with Catalog.open(snapshot, create=False) as catalog:
        digests = sorted({version.digest for version in catalog.list_versions()})
    copied: list[str] = []
    absent: list[str] = []
    replaced: list[str] = []
    for digest in digests:
        is_there = copy.path(digest).is_dir()
        if is_there and not (mend and _is_damaged(copy, digest)):
            continue
        try:
            source.verify(digest)
            if is_there:  # moved, not changed: an engine may be reading it
                copy.put_aside(copy.path(digest))
            copy.add(source.path(digest))
        except (ObjectMissing, ObjectDamaged) as error:
            absent.append(error.message)
        else:
            (replaced if is_there else copied).append(digest)
    there = len(digests) - len(copied) - len(absent) - len(replaced)
    return Copied(tuple(copied), there, tuple(absent), tuple(replaced))


def _is_damaged(store: Store, digest: str) -> bool:
    try:
        store.verify(digest)
    except ObjectDamaged:
        return True
    return False


def _put_in_place(new: Path, file: Path) -> None:
    """Replace a database in one step. What a killed writer of the old one left is not the new
    one's, and would damage it."""
    for end in ("-journal", "-wal", "-shm"):
        file.with_name(f"{file.name}{end}").unlink(missing_ok=True)
    new.rename(file)
    descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

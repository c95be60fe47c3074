"""Copies a store as a whole, to back it up or to bring it back, while both may be in use.

The copy of the catalog is taken first, so that all objects it names exist, and put in place last,
so that the target never names an object that it lacks. Knows nothing of databases on a server.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapters.catalog import Catalog
from adapters.errors import BadName, ObjectDamaged, ObjectMissing, quote, unwritable
from adapters.store import Store


@dataclass(frozen=True, slots=True)
class Copied:
    """The objects that the target lacked, the number of those it had, and why others are absent."""

    objects: tuple[str, ...]
    already_there: int
    absent: tuple[str, ...]


def copy_store(store: Path, target: Path) -> Copied:
    """Make `target` hold the catalog of `store` and every object that it names.

    Objects are verified on the way; one that is missing or damaged is left out and reported.
    Raises an AdapterError, also where the target is the store of another catalog.
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
                done = _copy_objects(source, copy, snapshot)
                _put_in_place(snapshot / "catalog.db", copy.root / "catalog.db")
        except OSError as error:
            said = f"copying to {quote(str(target))} failed"
            raise unwritable(said, error, "free space there, then try again") from error
    return done


def _copy_objects(source: Store, copy: Store, snapshot: Path) -> Copied:
    with Catalog.open(snapshot, create=False) as catalog:
        digests = sorted({version.digest for version in catalog.list_versions()})
    there = [digest for digest in digests if copy.path(digest).is_dir()]
    copied, absent = [], []
    for digest in digests:
        if digest in there:
            continue
        try:
            source.verify(digest)
            copy.add(source.path(digest))
        except (ObjectMissing, ObjectDamaged) as error:
            absent.append(error.message)
        else:
            copied.append(digest)
    return Copied(tuple(copied), len(there), tuple(absent))


def _put_in_place(new: Path, file: Path) -> None:
    """Replace a catalog in one step. What a killed writer of the old one left is not the new one's,
    and would damage it."""
    for end in ("-journal", "-wal", "-shm"):
        file.with_name(f"{file.name}{end}").unlink(missing_ok=True)
    new.rename(file)
    descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

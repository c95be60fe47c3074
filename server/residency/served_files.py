"""Whether a version's files are there, whole, and fit the base that is served now.

Asked before each load, whatever the version was published for: names and shapes are of the base
that is served, and the values are those that were judged at publishing if the digest is the same.
Hashing a file that has not changed since would find the same again, so that is done once for each
state of a file, as the file system tells it; a file is read each time, for a disk that fails.
"""

from __future__ import annotations

import os
from pathlib import Path

from adapters.catalog import AdapterVersion
from adapters.checkpoint import read_checkpoint
from adapters.checkpoint.base import Base
from adapters.errors import StoreUnreadable
from adapters.store import Store
from adapters.store.files import SERVED

_AT_ONCE = 1 << 18  # bytes

# Inode, size, and times of the last change of bytes and of the inode itself: the last can't be
# set by who writes a file.
State = tuple[tuple[int, int, int, int], ...]


class ServedObjects:
    """The store's objects as one base can serve them; used by several threads at once."""

    def __init__(self, store: Store, base: Base) -> None:
        self._store = store
        self._base = base
        self._passed: dict[str, State] = {}

    def check(self, version: AdapterVersion) -> None:
        """Raises an AdapterError unless the version can be loaded.

        A StoreError says that the store lost or damaged what was published; anything else, that
        what was published is not for this base.
        """
        digest = version.digest
        folder = self._store.path(digest)
        try:
            state = _state_of(folder)
            if state is not None and self._passed.get(digest) == state:
                _read(folder)
                return
            self._passed.pop(digest, None)
            self._store.verify(digest)
            read_checkpoint(folder, self._base, values=False)  # judged when it was published
        except OSError as error:
            raise StoreUnreadable(
                f"object {digest} cannot be read: {error.strerror or error}",
                "check the disk, or publish the adapter again",
            ) from error
        if state is not None:
            self._passed[digest] = state


def _state_of(folder: Path) -> State | None:
    """None when a file is not there, which `verify` tells better."""
    try:
        states = [os.lstat(folder / name) for name in SERVED]
    except OSError:
        return None
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states)


def _read(folder: Path) -> None:
    """A disk that fails is told here: from the engine it would look like the adapter's fault."""
    buffer = bytearray(_AT_ONCE)  # in the cache: three times as fast as to keep the bytes
    for name in SERVED:
        with (folder / name).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

"""What this server can serve: by a version's record before it waits, by its files before a load.

The files must be there, intact, and fit the served base.

Names and shapes are checked against the base that is served now. Values were checked at publishing,
and the same digest means the same values. Files are hashed once for each state that the file system
reports (`State`), but read before every load, to detect a failing disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adapters.catalog import AdapterVersion
from adapters.checkpoint import read_checkpoint
from adapters.checkpoint.base import Base
from adapters.errors import StoreUnreadable
from adapters.store import AnyStore
from adapters.store.store import counted
from adapters.sums import AdapterSum
from server.errors import AdapterUnusable, SumRefused
from server.residency.stacked_sums import StackedSums

_READ_BYTES = 1 << 18

# Of each file: inode, size, mtime and ctime. A writer can set the mtime back, but not the ctime.
State = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Servable:
    """Which versions this server takes; a `base_digest` of None takes those of any base."""

    max_rank: int
    base_digest: str | None = None

    def check(self, version: AdapterVersion) -> None:
        """Raises AdapterUnusable; SumRefused if only parts of a sum could be served."""
        if isinstance(version, AdapterSum):
            for part in version.parts:
                self.check(part.version)
            self._check_ranks(version)
            return
        if version.rank > self.max_rank:
            raise AdapterUnusable(
                f"The adapter {version.label} has rank {version.rank}; this server serves up to "
                f"{self.max_rank}. Start it with a larger --max-lora-rank."
            )
        if None not in (wanted := {self.base_digest, version.base_digest}) and len(wanted) > 1:
            raise AdapterUnusable(
                f"The adapter {version.label} was published for another base ({version.base}). "
                "Publish it for this one, or start the server with --allow-base-mismatch.",
                code="base_mismatch",
            )

    def _check_ranks(self, version: AdapterSum) -> None:
        if version.rank > self.max_rank:
            ranks = ", ".join(f"{each.version.label} {each.version.rank}" for each in version.parts)
            raise SumRefused(
                f"The ranks of this sum's parts ({ranks}) are {version.rank} together; this server "
                f"serves up to {self.max_rank}. Leave a part out, or start it with a larger "
                "--max-lora-rank."
            )


class ServedObjects:
    """The store's objects, checked for one base. Several threads may use it at once.

    `sums` has the files of sums, which are no objects.
    """

    def __init__(self, store: AnyStore, base: Base, sums: StackedSums) -> None:
        self._store = store
        self._base = base
        self._sums = sums
        self._passed: dict[str, State] = {}

    def path(self, version: AdapterVersion) -> Path:
        """The folder of its files, once `check` has passed it."""
        if isinstance(version, AdapterSum):
            return self._sums.path(version.digest)
        return self._store.path(version.digest)

    def check(self, version: AdapterVersion) -> None:
        """Raises an AdapterError unless the version can be loaded.

        A StoreError means that the store lost or damaged the files; any other, that they do not fit
        this base.
        """
        if isinstance(version, AdapterSum):
            for part in version.parts:
                self.check(part.version)
            self._sums.make(version)
            return
        digest = version.digest
        with self._store.using(digest) as folder:
            self._check(digest, folder)

    def _check(self, digest: str, folder: Path) -> None:
        try:
            state = _state_of(folder)
            if state is not None and self._passed.get(digest) == state:
                _read(folder)
                return
            self._passed.pop(digest, None)
            self._store.verify(digest)
            read_checkpoint(folder, self._base, values=False)  # checked at publishing
        except OSError as error:
            raise StoreUnreadable(
                f"object {digest} cannot be read: {error.strerror or error}",
                "check the disk, or publish the adapter again",
            ) from error
        if state is not None:
            self._passed[digest] = state


def _state_of(folder: Path) -> State | None:
    """None when a file is missing: `verify` has the better message."""
    try:
        states = [os.lstat(folder / name) for name in counted(folder)]
    except OSError:
        return None
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states)


def _read(folder: Path) -> None:
    """Detects a failing disk, which in the engine would look like a bad adapter."""
    buffer = bytearray(_READ_BYTES)  # fits the processor's cache: three times as fast as read()
    for name in counted(folder):
        with (folder / name).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

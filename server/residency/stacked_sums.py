"""The files of sums: each one's parts stacked as one adapter, in a private folder of this server.

    CACHE/sums/RANDOM/lock       held as long as the server lives: what a killed one has left goes
    CACHE/sums/RANDOM/DIGEST/    one sum, which appears whole, by one rename

A sum's files stay while it is resident; besides, those of the last few that have left.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from threading import Lock

from adapters.checkpoint.base import Base
from adapters.checkpoint.stacking import Weighted, judge, stack
from adapters.errors import unwritable
from adapters.store import AnyStore
from adapters.store.files import SERVED
from adapters.sums import AdapterSum

_LOCK = "lock"


class StackedSums:
    """Keeps the files of at most `most` sums that are not resident. For several threads."""

    def __init__(self, cache: Path, store: AnyStore, base: Base, most: int) -> None:
        self._own = cache.resolve() / "sums" / secrets.token_hex(8)
        self._lock: int | None = None  # the descriptor of the lock, once the folder is there
        self._store = store
        self._base = base
        self._most = most
        self._making = Lock()
        self._left: OrderedDict[str, None] = OrderedDict()  # not resident any more, in this order
        self.residents: Callable[[], Collection[str]] = tuple  # their digests

    def path(self, digest: str) -> Path:
        """Where the files of a sum are, or will be."""
        return self._own / digest.removeprefix("sha256:")

    def make(self, version: AdapterSum) -> None:
        """Build its files unless they are there; its parts' have been checked.

        Raises SumInvalid where weights make it too large, CheckpointInvalid or StoreUnwritable.
        """
        target = self.path(version.digest)
        try:
            with self._making:
                self._begin()
                self._discard()
                if not all((target / name).exists() for name in SERVED):
                    self._build(version, target)
        except OSError as error:
            said = f"the files of the sum {version.label} can't be written"
            raise unwritable(said, error, "free space in the server's --cache") from error

    def _build(self, version: AdapterSum, target: Path) -> None:
        partial = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            with ExitStack() as held:
                parts = [
                    Weighted(
                        held.enter_context(self._store.using(part.version.digest)),
                        float(part.weight),
                    )
                    for part in version.stacked
                ]
                stack(parts, partial, self._base.name)
            judge(partial, self._base)
            shutil.rmtree(target, ignore_errors=True)  # some of its files are missing
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _discard(self) -> None:
        """Delete the files of those that left the engine longest ago.

        The engine reads files while it loads, and again if it were asked to remove what it uses.
        """
        resident = {self.path(digest).name for digest in self.residents()}
        for path in self._own.iterdir():
            if path.name in resident:
                self._left.pop(path.name, None)
            elif path.name != _LOCK:
                self._left.setdefault(path.name)
        while len(self._left) > self._most:
            name, _ = self._left.popitem(last=False)
            shutil.rmtree(self._own / name, ignore_errors=True)

    def _begin(self) -> None:
        """Make the folder, and delete those of servers that have ended without doing so."""
        if self._lock is not None:
            return
        parent = self._own.parent
        parent.mkdir(parents=True, exist_ok=True)
        turn = _open(parent / _LOCK)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            for path in parent.iterdir():
                if path.is_dir() and not _is_held(path / _LOCK):
                    shutil.rmtree(path, ignore_errors=True)
            self._own.mkdir(mode=0o700, exist_ok=True)  # an earlier try may have failed
            self._lock = _open(self._own / _LOCK)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            os.close(turn)

    def close(self) -> None:
        """Delete all, once the engine has ended."""
        with self._making:
            if self._lock is not None:
                shutil.rmtree(self._own, ignore_errors=True)
                os.close(self._lock)
                self._lock = None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    descriptor = _open(lock)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False

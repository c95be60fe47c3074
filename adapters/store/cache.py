"""Copies of a shared store's objects on this machine: each whole, all within a bound.

    ROOT/objects ROOT/tmp ROOT/lock     a store of this machine (store.py), which may be emptied
    ROOT/tmp/<64 hex>.lock              held by who fetches that object; says its size in bytes
    ROOT/room                           held while room is made

Several processes may share it. Who uses a copy holds a lock on its folder, whose time of change is
its last use; the least recently used copies that nobody holds make room for others. Knows nothing
of where they come from.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.errors import StoreBusy, StoreFull, quote, unwritable
from adapters.store.store import Store, hold, place

FETCH_SECONDS = 600.0  # that another fetch of the same object is waited for
_TRIES = 5  # of a copy that is evicted before it can be held

Reserve = Callable[[int], None]  # makes room for so many bytes, or raises StoreFull
Fetch = Callable[[str, Path, Reserve], None]  # writes an object's checked files into a folder


class Cache:
    """`needed` returns the digests that are in use beyond the block that has asked for them."""

    def __init__(
        self, root: Path, max_bytes: int, needed: Callable[[], Collection[str]] = tuple
    ) -> None:
        self.store = Store(root)
        self._max_bytes = max_bytes
        self._needed = needed
        self._held: dict[str, int] = {}  # descriptors of copies that were in use when last seen
        self._lock = threading.Lock()

    @contextmanager
    def using(self, digest: str, fetch: Fetch) -> Iterator[Path]:
        """A copy, fetched if there is none, kept for the block and for as long as it is needed.

        However many ask at once, in any process: one fetches, the others wait for it.
        """
        descriptor = self._hold_copy(digest)
        for _ in range(_TRIES):
            if descriptor is None:
                self._fetch_once(digest, fetch)
                descriptor = self._hold_copy(digest)
        if descriptor is None:
            raise StoreBusy(
                f"the copy of object {digest} was evicted again and again",
                "the cache is too small for what is loaded at once: make it larger",
            )
        try:
            with suppress(OSError):  # on a read-only disk the order of eviction does not matter
                os.utime(self.store.path(digest))
            yield self.store.path(digest)
        finally:
            self._leave(digest, descriptor)

    def drop(self, digest: str) -> None:
        """Forget a damaged copy, even one in use: processes that have its files open keep them."""
        with self._reported(), suppress(FileNotFoundError):
            shutil.rmtree(self.store.put_aside(self.store.path(digest)), ignore_errors=True)

    def _fetch_once(self, digest: str, fetch: Fetch) -> None:
        with self._reported():
            self._tidy()
            target = self.store.path(digest)
            note = self.store.tmp / f"{target.name}.lock"
            with self.store.scratch() as folder, hold(note, alone=True, within=FETCH_SECONDS):
                if target.exists():
                    return
                try:
                    fetch(digest, folder, lambda size: self._reserve(note, size))
                    place(folder, target)
                finally:
                    os.truncate(note, 0)

    def _reserve(self, note: Path, size: int) -> None:
        """Evict what is not in use until `size` bytes fit, and note them as taken."""
        with hold(self.store.root / "room", alone=True):
            with self._lock:
                self._release()
            copies = sorted(self._copies())
            taken = sum(bytes_ for _, bytes_, _ in copies) + self._reserved()
            for _, bytes_, digest in copies:
                if taken + size <= self._max_bytes:
                    break
                if self._evict(digest):
                    taken -= bytes_
            if taken + size > self._max_bytes:
                raise StoreFull(
                    f"an object of {size} bytes does not fit into the cache"
                    f" {quote(str(self.store.root))}: {taken} of {self._max_bytes} bytes are of"
                    " adapters in use",
                    "raise store_cache_gib, or lower max_cpu_loras",
                )
            note.write_text(str(size))

    def _copies(self) -> Iterator[tuple[float, int, str]]:
        """Last use, size and digest of each copy."""
        for digest in self.store.digests():
            folder = self.store.path(digest)
            with suppress(FileNotFoundError):  # dropped meanwhile
                size = sum(file.stat().st_size for file in folder.iterdir())
                yield folder.stat().st_mtime, size, digest

    def _reserved(self) -> int:
        return sum(int(note.read_text() or 0) for note in self.store.tmp.glob("*.lock"))

    def _evict(self, digest: str) -> bool:
        descriptor = self._hold_copy(digest, fcntl.LOCK_EX)
        if descriptor is None:
            return False
        try:
            aside = self.store.put_aside(self.store.path(digest))
        finally:
            os.close(descriptor)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def _hold_copy(self, digest: str, how: int = fcntl.LOCK_SH) -> int | None:
        """A descriptor that holds the copy's lock; None if there is no copy, or others hold it."""
        path = self.store.path(digest)
        with self._reported():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except (BlockingIOError, FileNotFoundError):  # it is being evicted
                pass
            os.close(descriptor)
        return None

    def _leave(self, digest: str, descriptor: int) -> None:
        with self._lock:
            if digest in self._needed():
                descriptor, held = self._held.get(digest, -1), descriptor
                self._held[digest] = held
            self._release()
        if descriptor >= 0:
            os.close(descriptor)

    def _release(self) -> None:
        """Let go of copies that are in use no longer. Residents come and go without a notice."""
        needed = self._needed()
        for digest in [each for each in self._held if each not in needed]:
            os.close(self._held.pop(digest))

    def _tidy(self) -> None:
        """Delete what interrupted work has left, if nothing else is at work."""
        self.store.tmp.mkdir(parents=True, exist_ok=True)
        with suppress(StoreBusy), self.store.alone(within=0.0):
            for path in self.store.leftovers():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(
                f"the cache {quote(str(self.store.root))} of the store can't be written",
                error,
                "check its rights and free space, or give another folder with store_cache",
            ) from error

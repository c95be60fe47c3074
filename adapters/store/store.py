"""Immutable adapter files, stored under the digest of their bytes. Knows nothing of names.

    ROOT/objects/sha256/AA/<64 hex>/{adapter_config.json, adapter_model.safetensors
        [, tokenizer_config.json][, lorry.json]}
    ROOT/tmp/        copies that are not objects yet, and objects that are being removed
    ROOT/lock        publishers hold it shared, garbage collection exclusively

An object appears and disappears whole, by one rename, and its files never change.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.errors import (
    CheckpointInvalid,
    ObjectDamaged,
    ObjectMissing,
    Problem,
    StoreBusy,
    StoreUnreadable,
    StoreUnwritable,
    quote,
    unwritable,
)
from adapters.store.files import (
    COUNTED,
    MAX_BYTES,
    PROVENANCE,
    SERVED,
    FileRefused,
    copy_bounded,
    open_adapter_file,
    write_durably,
)

OBJECTS = "objects/sha256"
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
WAIT_SECONDS = 60.0
ALONE_SECONDS = 10.0
POLL_SECONDS = 0.02
FETCH_AGAIN = "stop the servers that use it, delete its folder and publish the adapter again"


def digest_of(hashes: Mapping[str, str]) -> str:
    """The digest of an object, from its files' sha256 in hex by file name.

    It is "sha256:" + sha256 of two lines "<sha256 in hex>  <file name>\\n", for adapter_config.json
    and then adapter_model.safetensors: `sha256sum adapter_config.json adapter_model.safetensors |
    sha256sum` prints the same. An adapter with a chat form of its own has a third line, for
    tokenizer_config.json: asked otherwise, it is another. Provenance (lorry.json) does not count:
    the same weights are the same adapter, no matter who trained them.
    """
    listing = "".join(f"{hashes[name]}  {name}\n" for name in COUNTED if name in hashes)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Staged:
    """A private copy of an adapter folder, the hashes of its files, and the problems of others."""

    path: Path
    hashes: Mapping[str, str]
    problems: tuple[Problem, ...]


class Store:
    """The objects under one root folder; safe to use from several processes."""

    def __init__(self, root: Path) -> None:
        # Resolved, because engines use paths of objects as keys of their caches.
        self.root = root.resolve()
        self._objects = self.root / OBJECTS
        self.tmp = self.root / "tmp"
        self._lock = self.root / "lock"

    def path(self, digest: str) -> Path:
        """The folder of an object, whether or not it exists."""
        return self._objects / folder_of(digest)

    def where(self, digest: str) -> str:
        """The object's place, for people."""
        return str(self.path(digest))

    @contextmanager
    def using(self, digest: str) -> Iterator[Path]:
        """An object's folder on this machine; not checked (`verify`)."""
        yield self.path(digest)

    def digests(self) -> Iterator[str]:
        """The digests of all objects, in order."""
        try:
            for folder in sorted(self._objects.glob("??/*")):
                digest = f"sha256:{folder.name}"
                if DIGEST.fullmatch(digest) and folder == self.path(digest):
                    yield digest
        except OSError as error:
            raise self._unreadable(error) from error

    def add(self, folder: Path) -> str:
        """Store a copy of an object's folder without judging it; returns its digest."""
        with self.scratch() as copy:
            with self._reported():
                staged = _take_adapter(folder, copy, None, False, (*COUNTED, PROVENANCE))
            if staged.problems:
                raise CheckpointInvalid(staged.problems)
            return self.commit(staged)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder in `tmp`, deleted at the end; until then nothing is collected."""
        with self.in_use():
            with self._reported():
                folder = Path(tempfile.mkdtemp(dir=self.tmp))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def stage(self, folder: Path, max_bytes: int | None = None) -> Iterator[Staged]:
        """Copy an adapter's files aside; unless committed, the copy is deleted at the end.

        `max_bytes` bounds the weights more tightly than files.MAX_BYTES. A folder in the store's
        own `tmp` was written durably (`scratch`), and its files are moved, not copied. Hashes are
        of the staged bytes: the judged bytes are the served bytes, even if the source changes
        meanwhile. Enter the version of a committed object before the end: `gc` waits until then.
        """
        with self.scratch() as copy:
            with self._reported():
                is_ours = folder.resolve().parent == self.tmp
                staged = _take_adapter(folder, copy, max_bytes, is_ours)
            yield staged

    def rewrite(self, staged: Staged, name: str, pieces: Iterable[bytes]) -> Staged:
        """A staged copy with other bytes in one of its files, durably written."""
        digest = hashlib.sha256()

        def counted_pieces() -> Iterator[bytes]:
            for piece in pieces:
                digest.update(piece)
                yield piece

        partial = staged.path / f"{name}.partial"
        with self._reported():
            write_durably(partial, counted_pieces())
            partial.replace(staged.path / name)
        return replace(staged, hashes={**staged.hashes, name: digest.hexdigest()})

    def commit(self, staged: Staged, *, is_known: bool = False) -> str:
        """Make a staged copy an object, unless its bytes are one already; returns the digest.

        `is_known`: a version has these bytes; it makes no difference here.
        """
        digest = digest_of(staged.hashes)
        target = self.path(digest)
        with self._reported():
            is_new = not target.exists() and place(staged.path, target)
        if not is_new:
            # Its age counts from now. Another user's can't be touched, but not collected either.
            with suppress(OSError):
                os.utime(target)
            self.verify(digest)
        return digest

    def settle(self, staged: Staged) -> None:
        """Once a committed object has its version: nothing, as `in_use` has kept it."""

    def verify(self, digest: str) -> None:
        """Read an object again; raises ObjectMissing or ObjectDamaged."""
        folder = self.path(digest)
        try:
            is_there = folder.is_dir()
        except OSError as error:
            raise self._unreadable(error) from error
        if not is_there:
            raise missing(digest)
        hashes = {}
        try:
            for name in counted(folder):
                with open_adapter_file(folder, name) as file:
                    hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except (FileRefused, OSError) as error:
            raise ObjectDamaged(f"object {digest} is damaged: {error}", FETCH_AGAIN) from error
        if digest_of(hashes) != digest:
            said = f"the bytes of object {digest} are not those that were published"
            raise ObjectDamaged(said, FETCH_AGAIN)

    def verify_original(self, digest: str) -> None:
        """Like `verify`: the object here is the only one."""
        self.verify(digest)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the lock shared: nothing that is made meanwhile, in `tmp` too, is collected."""
        with self._reported():
            self.tmp.mkdir(parents=True, exist_ok=True)
        with hold(self._lock, alone=False):
            yield

    @contextmanager
    def alone(self, within: float | None = None) -> Iterator[None]:
        """Hold the lock exclusively; raises StoreBusy or StoreUnwritable."""
        with hold(self._lock, alone=True, within=ALONE_SECONDS if within is None else within):
            yield

    def now(self) -> float:
        """The time by the clock of the store's file system, which also dates its files."""
        os.utime(self._lock)
        return self._lock.stat().st_mtime

    def leftovers(self) -> list[Path]:
        """Everything in `tmp`: while the lock is held exclusively, remains of interrupted work."""
        return sorted(self.tmp.iterdir()) if self.tmp.exists() else []

    def put_aside(self, folder: Path) -> Path:
        """Move an object to `tmp` in one step, so that half an object is never visible.

        No new folder is made: on a full disk there may be no room for one.
        """
        self.tmp.mkdir(exist_ok=True)
        return folder.rename(self.tmp / f"{folder.name}.{secrets.token_hex(8)}")

    def _unreadable(self, error: OSError) -> StoreUnreadable:
        return StoreUnreadable(
            f"the store {quote(str(self.root))} cannot be read: {error.strerror or error}",
            "check the path and its rights",
        )

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(
                f"writing to the store {quote(str(self.root))} failed",
                error,
                "nothing was published: check its rights and free space, then try again",
            ) from error


def folder_of(digest: str) -> str:
    """An object's folder below OBJECTS: AA/<64 hex>; raises ObjectMissing for another text."""
    match = DIGEST.fullmatch(digest)
    if not match:
        raise ObjectMissing(f"{quote(digest)} is not a digest", "write sha256: and 64 digits")
    return f"{match[1][:2]}/{match[1]}"


def missing(digest: str) -> ObjectMissing:
    return ObjectMissing(f"the store has no object {digest}", "publish the adapter again")


def counted(folder: Path) -> list[str]:
    """The names of an object's files that its digest counts; raises OSError."""
    there = {path.name for path in folder.iterdir()}
    return [name for name in COUNTED if name in SERVED or name in there]


def _take_adapter(
    folder: Path,
    copy: Path,
    max_bytes: int | None,
    is_ours: bool,
    names: Sequence[str] = (*SERVED, PROVENANCE),
) -> Staged:
    hashes, problems = {}, []
    for name in names:
        limit = min(max_bytes or MAX_BYTES[name], MAX_BYTES[name])
        digest = hashlib.sha256()
        try:
            with open_adapter_file(folder, name, limit) as source:
                if is_ours:
                    digest = hashlib.file_digest(source, "sha256")
                    (folder / name).rename(copy / name)
                else:
                    copy_bounded(source, copy / name, limit, digest.update)
        except FileRefused as refused:
            if name in SERVED or refused.problem.code != "file_missing":
                problems.append(refused.problem)
        else:
            hashes[name] = digest.hexdigest()
    return Staged(copy, hashes, tuple(problems))


def place(copy: Path, target: Path) -> bool:
    """Move a copy to its final place, durably; False if another process was first."""
    _make_durable_folder(target.parent)
    copy.chmod(0o755)
    os.utime(copy)  # an object's age counts from its commit
    _sync_folder(copy)
    try:
        copy.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    _sync_folder(target.parent)
    return True


def _make_durable_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_durable_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold(path: Path, *, alone: bool, within: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold a lock between processes on a file, shared or `alone`; its holder's death releases it.

    Raises StoreBusy when others hold it for longer than `within` seconds, or StoreUnwritable.
    """
    try:
        # Over NFS an exclusive lock needs a file that is open for writing.
        mode = os.O_RDWR if alone else os.O_RDONLY
        descriptor = os.open(path, mode | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _not_lockable(path, error) from error
    try:
        _take(descriptor, path, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, within)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, kind: int, within: float) -> None:
    deadline = time.monotonic() + within
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreBusy(
                    f"another process works in the store {quote(str(path.parent))}",
                    "try again when it is done",
                ) from None
            time.sleep(POLL_SECONDS)
        except OSError as error:
            raise _not_lockable(path, error) from error


def _not_lockable(path: Path, error: OSError) -> StoreUnwritable:
    return unwritable(
        f"the store {quote(str(path.parent))} cannot be locked",
        error,
        "nothing was published: check its rights, and that its file system supports locks (flock)",
    )

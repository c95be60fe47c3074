"""A lock between processes on one file: many together, or one alone.

The kernel lets go of it when its holder dies, however that happens.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import StoreBusy, StoreUnwritable, quote

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.02


@contextmanager
def hold(path: Path, *, alone: bool, within: float = WAIT_SECONDS) -> Iterator[None]:
    """Raises StoreBusy when others hold it for longer than `within`, or StoreUnwritable."""
    try:
        # Over NFS a lock to be alone with needs a file that is open for writing.
        mode = os.O_RDWR if alone else os.O_RDONLY
        descriptor = os.open(path, mode | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _unwritable(path, error) from error
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
                    f"somebody else works in the store {quote(str(path.parent))}",
                    "try again when they are done",
                ) from None
            time.sleep(POLL_SECONDS)
        except OSError as error:
            raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StoreUnwritable:
    return StoreUnwritable(
        f"the store {quote(str(path.parent))} cannot be locked: {error.strerror or error}",
        "nothing was published: check its rights, and that its file system knows locks (flock)",
    )

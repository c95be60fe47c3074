"""A bucket, or any folder that fsspec reads and writes, as a place of files under keys.

Each request has a time limit by what it carries, and ends in a StoreError without the driver's own
text, which may hold a secret. A bucket that is away is not waited for again and again. Knows the
keys of no object.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from adapters import addresses
from adapters.errors import (
    StoreReadOnly,
    StoreUnreadable,
    StoreUnwritable,
    quote,
    unwritable,
)

PIECE = 8 << 20
ANSWER_SECONDS = 10.0  # of a request that carries nothing
LISTING_SECONDS = 600.0  # of all files there are: a thousand come with each answer
SLOWEST = 512 << 10  # bytes a second; what is slower counts as lost
AWAY_SECONDS = 5.0
READ_ONLY = frozenset({"http", "https", "hf"})
# New listings each time: other servers publish too. A local folder is made where it is missing.
OPTIONS: Mapping[str, dict[str, Any]] = {"file": {"auto_mkdir": True}}
# Where the drivers put the time of a file's last change: s3fs, gcsfs, adlfs, local and in memory.
TIMES = ("LastModified", "mtime", "updated", "last_modified", "modified", "created")
SAID = "check the address, your credentials and the network, then try again"


def parse_place(text: str | Path) -> "Path | Bucket":
    """A store's place: a folder, or with `://` a bucket, which is looked at when it is used."""
    return Bucket(text) if isinstance(text, str) and "://" in text else Path(text)


_Work = Callable[[Any, str], Coroutine[Any, Any, Any]]  # of a file system and a path in it


class _Opened(NamedTuple):
    scheme: str
    files: Any  # an AsyncFileSystem of fsspec
    root: str


class File(NamedTuple):
    """What a listing says of a file: its size in bytes, its last change in Unix seconds."""

    size: int
    changed_at: float | None


class Bucket:
    """The files below one address, by their keys `a/b/c`. Several threads may use it at once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._lost: tuple[float, str] | None = None

    def __str__(self) -> str:
        """The address, without what may be a secret."""
        try:
            return addresses.redact(self._text) if self._secret() else self._text.rstrip("/")
        except ValueError:
            return "(no address)"

    __repr__ = __str__

    def check(self) -> None:
        """Raises StoreUnreadable for an address that no store can have."""
        self._open()

    def list_all(self, key: str) -> dict[str, File]:
        """Like `list`, for a key that may have any number of files below."""
        return self.list(key, LISTING_SECONDS)

    def list(self, key: str, within: float | None = None) -> dict[str, File]:
        """All files below a key, by their own keys; empty if there are none."""

        async def find(files: Any, path: str) -> Any:
            return await files._find(path, detail=True)

        try:
            found = self._ask(find, key, within)
        except FileNotFoundError:
            return {}
        start = len(self._open().root) + 1
        infos = (info for info in found.values() if info.get("type") == "file")
        return {
            str(info["name"])[start:]: File(int(info.get("size") or 0), _read_time(info))
            for info in infos
        }

    def read(self, key: str, start: int, end: int) -> bytes:
        """The bytes of a file from `start` up to `end`; raises FileNotFoundError."""

        async def read(files: Any, path: str) -> Any:
            return await files._cat_file(path, start=start, end=end)

        return bytes(self._ask(read, key, _patience(end - start)))

    def put(self, source: Path, key: str) -> None:
        """Send a file, which appears when it is whole."""
        in_steps = self._open().scheme == "file"  # an object store shows nothing before

        async def put(files: Any, path: str) -> Any:
            part = f"{path}.{secrets.token_hex(4)}.part" if in_steps else path
            await files._put_file(str(source), part)
            if in_steps:
                await files._mv(part, path)

        self._change(put, key, _patience(source.stat().st_size))

    def remove(self, keys: Iterable[str]) -> None:
        """Delete files, in this order."""

        async def remove(files: Any, path: str) -> Any:
            with suppress(FileNotFoundError):
                return await files._rm_file(path)

        for key in keys:
            self._change(remove, key)

    def read_note(self, name: str, max_bytes: int) -> bytes | None:
        """A small file, or None if there is none."""
        try:
            return self.read(name, 0, max_bytes)
        except FileNotFoundError:
            return None

    def write_note(self, name: str, content: bytes) -> None:
        """Write a small file, unless there is one."""

        async def write(files: Any, path: str) -> Any:
            return await files._pipe_file(path, content, mode="create")

        try:
            self._change(write, name)
        except FileExistsError:
            return

    def now(self) -> float:
        """The time by the bucket's own clock, in Unix seconds, which also dates its files.

        Raises StoreUnreadable if it dates none.
        """
        name = f"clock-{secrets.token_hex(4)}"
        self.write_note(name, b"lorry adapters gc\n")
        found = self.list(name).get(name)
        self.remove([name])
        if found is None or found.changed_at is None:
            raise StoreUnreadable(
                f"{quote(str(self))} does not say when its files were written",
                "nothing was removed: the bucket does not report the age of an object",
            )
        return found.changed_at

    def _open(self) -> "_Opened":
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def _connect(self) -> "_Opened":
        from fsspec.asyn import AsyncFileSystem
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        try:
            address = addresses.parse(self._text)
            if self._secret():
                raise addresses.Unsupported(
                    "its address has a user, a password, a query or a fragment",
                    "leave them out: give credentials by the variables of the driver, such as"
                    " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                )
            if address.scheme in READ_ONLY:
                raise addresses.Unsupported(f"{address.scheme}:// can't be written", "use a bucket")
            options = OPTIONS.get(address.scheme, {})
            files, root = addresses.open_files(address, use_listings_cache=False, **options)
        except addresses.Unsupported as error:
            said = f"the store {quote(str(self))} can't be used: {error.message}"
            raise StoreUnreadable(said, error.hint) from None
        except Exception as error:  # noqa: BLE001 - every driver has a tree of errors of its own
            raise self._unreadable(type(error).__name__) from None
        if not isinstance(files, AsyncFileSystem):
            files = AsyncFileSystemWrapper(files, asynchronous=False)
        return _Opened(address.scheme, files, root.rstrip("/"))

    def _secret(self) -> bool:
        """Whether a part of the address may be one; az://CONTAINER@ACCOUNT has a user in form."""
        parts = urlsplit(self._text)
        user, at, _ = parts.netloc.rpartition("@")
        is_azure = addresses.ALIASES.get(parts.scheme, parts.scheme) == "az"
        return bool((at and (":" in user or not is_azure)) or parts.query or parts.fragment)

    def _ask(self, work: "_Work", key: str, within: float | None) -> Any:
        """Raises FileNotFoundError or StoreUnreadable."""
        try:
            return self._run(work, key, within)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreadable(error.strerror or type(error).__name__) from None

    def _change(self, work: "_Work", key: str, within: float | None = None) -> None:
        """Raises FileExistsError, StoreUnreadable or StoreUnwritable."""
        hint = "nothing was published: check its rights and free space, then try again"
        said = f"writing to the store {quote(str(self))} failed"
        try:
            self._run(work, key, within)
        except FileNotFoundError:
            there_is_none = "there is no such bucket or folder"
            raise StoreUnwritable(f"{said}: {there_is_none}", "make it, then try again") from None
        except PermissionError:
            raise StoreReadOnly(f"{said}: not permitted", hint) from None
        except FileExistsError:
            raise
        except OSError as error:
            raise unwritable(said, error, hint) from None

    def _run(self, work: "_Work", key: str, within: float | None) -> Any:
        """Raises StoreUnreadable where the bucket is away, or an OSError that it answers with."""
        opened = self._open()
        if self._lost is not None and time.monotonic() < self._lost[0]:
            raise self._unreadable(self._lost[1])
        within = within or ANSWER_SECONDS
        limited = asyncio.wait_for(work(opened.files, f"{opened.root}/{key}"), within)
        try:
            return asyncio.run_coroutine_threadsafe(limited, opened.files.loop).result()
        except (FileNotFoundError, FileExistsError, PermissionError):
            raise
        except TimeoutError:
            reason = f"no answer within {within:.0f} s"
        except Exception as error:
            if isinstance(error, OSError) and opened.scheme == "file":
                raise  # of this machine: it says what is wrong
            reason = type(error).__name__
        self._lost = time.monotonic() + AWAY_SECONDS, reason
        raise self._unreadable(reason)

    def _unreadable(self, reason: str) -> StoreUnreadable:
        return StoreUnreadable(f"the store {quote(str(self))} can't be used ({reason})", SAID)


def _patience(carried: int) -> float:
    """How long a request with so many bytes may take, in seconds."""
    return ANSWER_SECONDS + carried / SLOWEST


def _read_time(info: Mapping[str, Any]) -> float | None:
    for name in TIMES:
        value = info.get(name)
        if isinstance(value, str):
            with suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None

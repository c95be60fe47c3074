"""Where adapters come from: a folder, a Hugging Face repo, or any address that fsspec reads.

    FOLDER, file:///FOLDER                 read in place
    hf://ORG/REPO[@REVISION]               the revision is resolved to a commit and recorded; with
                                           HF_HUB_OFFLINE=1 it is read from the hub's cache
    s3://, gs://, az://, https://, ...     the address of a folder with the adapter's files

Only an adapter's own files are fetched, and those that say in which form it was trained, each up to
its limit, into a temporary folder. The secret parts of an address (user, password, query) are never
printed or recorded. Knows nothing of the files' contents.
"""

import errno
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from adapters import addresses, hub
from adapters.addresses import Address
from adapters.errors import (
    CheckpointInvalid,
    SourceError,
    SourceNotFound,
    SourceUnreachable,
    SourceUnsupported,
    StoreUnwritable,
    quote,
    unwritable,
)
from adapters.hub import HubModel
from adapters.store.files import (
    CONFIG,
    FORM,
    MAX_BYTES,
    MLX,
    PICKLES,
    PROVENANCE,
    WEIGHTS,
    FileRefused,
    copy_bounded,
)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
HTTP = frozenset({"http", "https"})
# Read as a plain stream, because not every server answers range requests. With a size given, fsspec
# makes no request for it first, which would report every failure as a missing file.
OPENED = {"http": {"block_size": 0, "size": 1}, "hf": {"block_size": 0}}
OPENED["https"] = OPENED["http"]
FILES = (CONFIG, WEIGHTS, PROVENANCE, *FORM, *MLX)
SILENCE_SECONDS = 60.0
WHOLE_SECONDS = 3600.0  # the longest that a slow server can hold the store's lock


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder with the adapter's files, and their origin (None for a folder of this machine)."""

    folder: Path
    origin: dict[str, str] | None = None


@contextmanager
def fetched(
    source: Path | str, into: Path, max_bytes: int, schemes: frozenset[str] | None = None
) -> Iterator[Fetched]:
    """A folder that holds the adapter at `source` for the length of the block.

    A remote one is fetched to a temporary folder in `into`, with weights of at most `max_bytes`.
    `schemes` are the allowed ones ("file" for a plain path); None allows all.
    Raises SourceUnsupported, SourceNotFound, SourceUnreachable, CheckpointInvalid for a file that
    is too large, or StoreUnwritable.
    """
    address = _parse(source)
    scheme = address.scheme if address else "file"
    if schemes is not None and scheme not in schemes:
        allowed = ", ".join(sorted(schemes)) or "none"
        raise SourceUnsupported(f"{scheme}:// is not an allowed source", f"allowed: {allowed}")
    if address is None or scheme == "file":
        yield Fetched(_folder_of(source, address))
        return
    with _temporary_folder(into) as folder:
        limits = dict(MAX_BYTES)
        limits |= {name: min(max_bytes, limits[name]) for name in (WEIGHTS, *MLX)}
        origin = {"url": address.shown}
        if scheme == "hf" and hub.is_offline():
            origin["commit"] = _copy_cached(address, folder, limits)
            yield Fetched(folder, origin)
            return
        if scheme == "hf":
            address = _find_commit(address)
            origin["commit"] = address.text.rpartition("@")[2]
        _fetch(address, folder, limits)
        yield Fetched(folder, origin)


def local_folder(source: Path | str) -> Path | None:
    """The folder of this machine that a source names, or None; raises SourceUnsupported."""
    address = _parse(source)
    is_local = address is None or address.scheme == "file"
    return _folder_of(source, address) if is_local else None


def _folder_of(source: Path | str, address: Address | None) -> Path:
    if address is None:
        return Path(source)
    parts = urlsplit(address.text)
    if parts.netloc not in ("", "localhost"):
        raise SourceUnsupported(
            "a file:// address names a folder of this machine", "write file:///PATH, with three /"
        )
    return Path(unquote(parts.path))


def _parse(source: Path | str) -> Address | None:
    if "\0" in str(source):
        raise SourceUnsupported("the source holds a NUL character", "write a path or SCHEME://PATH")
    if isinstance(source, Path) or "://" not in source:
        return None
    try:
        return addresses.parse(source)
    except addresses.Unsupported as error:
        raise SourceUnsupported(f"the source can't be read: {error.message}", error.hint) from error


@contextmanager
def _temporary_folder(into: Path) -> Iterator[Path]:
    try:
        into.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=into, ignore_cleanup_errors=True)
    except OSError as error:
        raise unwritable(
            f"there is no room in {quote(str(into))}",
            error,
            "check its rights and free space",
        ) from error
    with temporary as name:
        yield Path(name)


def _fetch(address: Address, folder: Path, limits: Mapping[str, int]) -> None:
    files, root = _open_filesystem(address)
    options = OPENED.get(address.scheme, {})
    with _reported(address):
        for name in FILES:
            if name in MLX and (folder / WEIGHTS).exists():
                continue
            path = _join(address, root, name)
            if address.scheme == "hf" and not files.exists(path):
                continue  # the hub's stream raises an error of its own for a missing file
            with suppress(FileNotFoundError), files.open(path, "rb", **options) as remote:
                _copy(remote, folder / name, limits[name])
        for name in () if any((folder / each).exists() for each in (WEIGHTS, *MLX)) else PICKLES:
            if files.exists(_join(address, root, name)):
                # Never fetched: an empty file is enough for the refusal.
                (folder / name).touch()
    if not any((folder / name).exists() for name in (CONFIG, WEIGHTS, *PICKLES)):
        raise _not_found(address)


def _copy_cached(address: Address, folder: Path, limits: Mapping[str, int]) -> str:
    """Copy an adapter that another tool has fetched into the hub's cache; returns its commit."""
    repo = _parse_repo(address)
    with _reported(address):
        cached = {name: hub.find_cached(repo, name) for name in (*FILES, *PICKLES)}
    found = {name: path for name, path in cached.items() if path is not None}
    if not found:
        raise SourceNotFound(
            f"the hub's cache holds no adapter {quote(str(repo))}, and HF_HUB_OFFLINE forbids to"
            " fetch it",
            "unset HF_HUB_OFFLINE, or give the adapter's folder",
        )
    for name, path in found.items():
        if name in PICKLES:
            (folder / name).touch()
            continue
        with _reported(address), path.open("rb") as file:
            _copy(file, folder / name, limits[name])
    return next(iter(found.values())).parent.name  # .../snapshots/COMMIT/FILE


def _open_filesystem(address: Address) -> tuple[Any, str]:
    options: dict[str, Any] = {}
    if address.scheme in HTTP:
        from aiohttp import ClientTimeout

        # A large file may take long, but the server may not be silent.
        patience = ClientTimeout(
            WHOLE_SECONDS, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS
        )
        options["client_kwargs"] = {"timeout": patience}
    with _reported(address):
        try:
            return addresses.open_files(address, **options)
        except addresses.Unsupported as error:
            raise SourceUnsupported(error.message, error.hint) from None


def _join(address: Address, root: str, name: str) -> str:
    if address.scheme not in HTTP:
        return f"{root.rstrip('/')}/{name}"
    parts = urlsplit(address.text)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


def _copy(remote: Any, path: Path, max_bytes: int) -> None:
    try:
        copy_bounded(remote, path, max_bytes)
    except FileRefused as refused:
        path.unlink()
        raise CheckpointInvalid([refused.problem]) from refused
    except OSError as error:
        if error.errno not in FULL:
            raise  # an error of the source
        raise unwritable(
            f"there is no room in {quote(str(path.parent.parent))}",
            error,
            "free space in the store, then try again",
        ) from error


@contextmanager
def _reported(address: Address) -> Iterator[None]:
    """Raise SourceUnreachable for any backend error, without its text, which may hold secrets."""
    try:
        yield
    except (SourceError, CheckpointInvalid, StoreUnwritable):
        raise
    except Exception as error:  # noqa: BLE001 - every backend has a tree of errors of its own
        status = getattr(error, "status", None)
        reason = f"{type(error).__name__} {status}" if status else type(error).__name__
        raise SourceUnreachable(
            f"{quote(address.shown)} could not be read ({reason})",
            "check the address, your credentials and the network, then try again",
        ) from None


def _not_found(address: Address) -> SourceNotFound:
    return SourceNotFound(
        f"there is no adapter at {quote(address.shown)} that you may read",
        f"give the folder that holds {CONFIG} and {WEIGHTS}, and credentials if it needs any",
    )


def _find_commit(address: Address) -> Address:
    """The repo at the commit of its revision; endpoint and token are huggingface_hub's settings."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    repo = _parse_repo(address)
    with _reported(address):
        try:
            facts = HfApi().model_info(repo.repo, revision=repo.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise _not_found(address) from None
    return Address("hf", f"hf://{repo.repo}@{facts.sha}")


def _parse_repo(address: Address) -> HubModel:
    repo = hub.parse_id(address.text.removesuffix("/"))
    if repo is None:
        raise SourceUnsupported("the source is no repository", "write hf://ORG/REPO[@REVISION]")
    return repo

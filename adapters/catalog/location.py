"""The one catalog that a store belongs to; the store notes the catalog's id.

Objects that only another catalog names are orphans to this one, and garbage collection would
remove them. So the first catalog that is opened to write beside a store leaves its id there, and
no other is opened to write beside it or may collect its garbage.
"""

import errno
import os
import tempfile
from pathlib import Path
from typing import NamedTuple, Protocol

from sqlalchemy.engine import URL

from adapters.errors import StoreReadOnly, StoreUnreadable, quote, unwritable

DATABASE = "catalog.db"
OWNER = "catalog-id"
MAX_NOTE = 1024
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS})  # a simple file system


class Notes(Protocol):
    """A place of a store that is no folder (adapters/store/bucket.py); its text shows no secret."""

    def check(self) -> None: ...

    def read_note(self, name: str, max_bytes: int) -> bytes | None: ...

    def write_note(self, name: str, content: bytes) -> None: ...


Place = Path | Notes


class Owner(NamedTuple):
    """A catalog: the id in its database, and where that is, without user and password."""

    id: str
    address: str


def address(url: URL) -> str:
    """Where a database is, without the credentials."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{Path(url.database or '').resolve()}"
    where = URL.create(url.drivername, host=url.host, port=url.port, database=url.database)
    return where.render_as_string()


def check_own(store_dir: Path, *, create: bool) -> None:
    """Make sure that the store has, or with `create` may get, a database of its own.

    Raises StoreUnreadable or StoreUnwritable.
    """
    try:
        if create:
            store_dir.mkdir(parents=True, exist_ok=True)
        is_there = (store_dir / DATABASE).exists()
        owner = None if is_there else _read(store_dir)
    except OSError as error:
        said, hint = f"the store {quote(str(store_dir))}", "check the path and its rights"
        if create:
            raise unwritable(said, error, hint) from error
        raise StoreUnreadable(f"{said}: {error.strerror or error}", hint) from error
    if owner:
        raise _belongs_to(owner, store_dir)
    if not is_there and not create:
        raise StoreUnreadable(
            f"there is no adapter store at {quote(str(store_dir))}",
            "publish an adapter first, or give the store's folder with --store",
        )


def check_shared(place: Notes, url: str | None) -> None:
    """Make sure that a store that is no folder has a catalog on a database server.

    Raises StoreUnreadable.
    """
    place.check()
    if not url or url.startswith("sqlite"):
        said = "is in a file" if url else "is missing"
        raise StoreUnreadable(
            f"the store {quote(str(place))} is shared, and its catalog {said}",
            "give a catalog in PostgreSQL with --catalog or LORRY_CATALOG",
        )


def claim(store_dir: Place, owner: Owner) -> None:
    """Note that the store belongs to this catalog.

    A store that this process may not write to is left as it is: it can't be collected either.
    Raises StoreUnreadable if it belongs to another catalog, or StoreUnwritable.
    """
    try:
        if not isinstance(store_dir, Path):
            if _read(store_dir) is None:
                store_dir.write_note(OWNER, _text(owner).encode())
        elif not (store_dir / OWNER).exists():
            _note(store_dir, owner)
    except StoreReadOnly:
        return
    except OSError as error:
        if error.errno in _CLOSED:
            return
        raise unwritable(
            f"{OWNER!r} in the store {quote(str(store_dir))}",
            error,
            "nothing was published: free space in the store, then try again",
        ) from error
    check_owner(store_dir, owner)


def check_owner(store_dir: Place, owner: Owner) -> None:
    """Raises StoreUnreadable unless the store is known to belong to this catalog."""
    noted = _read(store_dir)
    if noted is None:
        raise StoreUnreadable(
            f"the store {quote(str(store_dir))} does not know the catalog {quote(owner.address)}",
            "nothing was removed: publish to it, or serve from it, with this catalog first",
        )
    if noted.id != owner.id:
        raise _belongs_to(noted, store_dir)


def check_no_other(store_dir: Place, owner: Owner) -> None:
    """Raises StoreUnreadable if the store belongs to another catalog, for readers."""
    noted = _read(store_dir)
    if noted is not None and noted.id != owner.id:
        raise _belongs_to(noted, store_dir)


def _read(store_dir: Place) -> Owner | None:
    text = _read_file(store_dir) if isinstance(store_dir, Path) else _read_note(store_dir)
    if text is None:
        return None
    catalog_id, _, where = text.strip().partition(" ")
    return Owner(catalog_id, where)


def _read_note(place: Notes) -> str | None:
    content = place.read_note(OWNER, MAX_NOTE)
    return None if content is None else content.decode(errors="replace")


def _read_file(store_dir: Path) -> str | None:
    try:
        with (store_dir / OWNER).open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_NOTE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreUnreadable(
            f"{OWNER!r} in the store {quote(str(store_dir))}: {error.strerror or error}",
            "it must be readable by all who use the store: check its rights",
        ) from error


def _note(store_dir: Path, owner: Owner) -> None:
    """Write the note, unless another process was first."""
    scratch = store_dir / "tmp"  # garbage collection takes its leftovers
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        whole = Path(folder) / OWNER
        with whole.open("w", encoding="utf-8") as file:
            file.write(_text(owner))
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: others share the store
            os.fsync(file.fileno())
        try:
            os.link(whole, store_dir / OWNER)  # appears whole, and never replaces another
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            whole.rename(store_dir / OWNER)


def _text(owner: Owner) -> str:
    return f"{owner.id} {owner.address}\n"


def _belongs_to(owner: Owner, store_dir: Place) -> StoreUnreadable:
    return StoreUnreadable(
        f"the versions of the store {quote(str(store_dir))} are in the catalog {owner.address!r}",
        "give its address with --catalog or LORRY_CATALOG; if it was lost, bring it back (or, to"
        f" begin an empty one for this store, delete {OWNER!r} in it)",
    )

"""Which catalogs the versions of a store are in: its own, and those that its mark names.

To a catalog, the objects that only another one names are orphans. So a store that has had a
catalog elsewhere opens no empty one of its own, and `gc` asks here whether there are others.
"""

import errno
import os
import tempfile
from pathlib import Path

from sqlalchemy.engine import URL

from adapters.errors import StoreUnreadable, StoreUnwritable, quote

DATABASE = "catalog.db"
ELSEWHERE = "catalog-elsewhere"
_BEGUN = ("lock", "objects")  # what a publisher makes before its catalog
_UNKNOWN = "others, of a Lorry that did not note them"
_POSTGRESQL_PORT = 5432
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def may_make_own(store_dir: Path, *, create: bool, for_objects: bool) -> bool:
    """Whether the store's own database may be made; raises StoreUnreadable or StoreUnwritable.

    `for_objects`: also where its publisher was killed before, or it was lost.
    """
    if (store_dir / ELSEWHERE).exists():
        raise StoreUnreadable(
            f"the versions of the store {quote(str(store_dir))} are in a shared catalog",
            "give its address with --catalog or LORRY_CATALOG",
        )
    try:
        if create:
            store_dir.mkdir(parents=True, exist_ok=True)
        if for_objects:
            create = create or all((store_dir / each).exists() for each in _BEGUN)
        if not create and not (store_dir / DATABASE).exists():
            raise StoreUnreadable(
                f"there is no adapter store at {quote(str(store_dir))}",
                "publish an adapter first, or give the store's folder with --store",
            )
    except OSError as error:
        kind = StoreUnwritable if create else StoreUnreadable
        reason = error.strerror or error
        raise kind(
            f"the store {quote(str(store_dir))}: {reason}", "check the path and its rights"
        ) from error
    return create


def note(store_dir: Path, url: URL) -> None:
    """Mark that the store's versions are in that database, which could be opened.

    Raises StoreUnwritable, except where all of the store is closed to us: it is not collected
    from here either.
    """
    here = address(url)
    if here == _own(store_dir) or not store_dir.is_dir():
        return
    try:
        if here not in _noted(store_dir):
            _add(store_dir, here)
    except OSError as error:
        if error.errno not in _CLOSED:
            raise StoreUnwritable(
                f"{ELSEWHERE!r} in the store {quote(str(store_dir))}: {error.strerror or error}",
                "nothing was published: free space in the store, then try again",
            ) from error


def _add(store_dir: Path, line: str) -> None:
    mark = store_dir / ELSEWHERE
    if not mark.exists() and _make(store_dir, line):
        return
    with mark.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n" if mark.stat().st_size else f"{_UNKNOWN}\n{line}\n")


def _make(store_dir: Path, line: str) -> bool:
    """The mark with its first line, at once; an empty one is an older program's. Whether it was
    not there."""
    scratch = store_dir / "tmp"  # whose leftovers `gc` takes
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        whole = Path(folder) / ELSEWHERE
        whole.write_text(f"{line}\n", encoding="utf-8")
        try:
            os.link(whole, store_dir / ELSEWHERE)
        except FileExistsError:
            return False
    return True


def check_only(store_dir: Path, url: URL) -> None:
    """Raises StoreUnreadable where other catalogs than that may name the store's objects."""
    here, own = address(url), _own(store_dir)
    noted = _noted(store_dir)
    others = [each for each in noted if each != here]
    if here != own and here not in noted and not others:
        raise StoreUnreadable(
            f"the store {quote(str(store_dir))} does not know the catalog {quote(here)}",
            "nothing was removed: publish to it, or serve from it, with this catalog first",
        )
    if here != own and (store_dir / DATABASE).exists():
        others.append(own)
    if others:
        raise StoreUnreadable(
            f"versions of the store {quote(str(store_dir))} may be in other catalogs than"
            f" {quote(here)}: {', '.join(map(quote, others))}",
            "nothing was removed: what only those name would be lost. If they are the same or not"
            f" needed, delete their lines in {ELSEWHERE!r} there (or {DATABASE!r}), then try again",
        )


def address(url: URL) -> str:
    """Where a database is, without who may enter."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{Path(url.database or '').resolve()}"
    host, port = (url.query.get(key) for key in ("host", "port"))  # libpq takes them here, too
    where = f"{url.host or host or ''}:{url.port or port or _POSTGRESQL_PORT}"
    return f"{url.get_backend_name()}://{where}/{url.database or url.username or ''}"


def _own(store_dir: Path) -> str:
    return f"sqlite:///{(store_dir / DATABASE).resolve()}"


def _noted(store_dir: Path) -> list[str]:
    """In the order of their first use; none of a store that older programs marked."""
    try:
        return (store_dir / ELSEWHERE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []

"""A store in a bucket, for servers on many machines: its objects by fsspec, and a cache of copies.

    URL/objects/sha256/AA/<64 hex>/{adapter_model.safetensors [, tokenizer_config.json]
        [, lorry.json], adapter_config.json}
    URL/catalog-id      the catalog that the store belongs to (adapters/catalog/location.py)

The config is sent last: an object without one does not exist. Nobody trusts that alone: what is
read is served only if it has the digest. Sending the same bytes again is harmless, and mends them.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import ObjectDamaged, ObjectMissing
from adapters.store.bucket import PIECE, Bucket, File
from adapters.store.cache import Cache, Reserve
from adapters.store.files import (
    CONFIG,
    COUNTED,
    MAX_BYTES,
    PROVENANCE,
    SERVED,
    TOKENIZER,
    WEIGHTS,
    copy_bounded,
)
from adapters.store.store import DIGEST, OBJECTS, Staged, digest_of, folder_of, missing

SENT = (WEIGHTS, TOKENIZER, PROVENANCE, CONFIG)
DAMAGED_SECONDS = 30.0  # that a damaged object, which may be large, is not fetched again
SEND_AGAIN = "publish the same adapter again, which replaces its files"


class SharedStore:
    """Methods of Store. Objects are judged, and copies are, in folders of the cache."""

    def __init__(self, bucket: Bucket, cache: Cache) -> None:
        self.bucket = bucket
        self._cache = cache
        self._damaged: dict[str, tuple[float, ObjectDamaged]] = {}
        here = cache.store
        self.tmp, self.path = here.tmp, here.path
        self.in_use, self.scratch = here.in_use, here.scratch
        self.stage, self.rewrite = here.stage, here.rewrite

    def where(self, digest: str) -> str:
        return f"{self.bucket}/{OBJECTS}/{folder_of(digest)}"

    @contextmanager
    def using(self, digest: str) -> Iterator[Path]:
        """A copy of an object on this machine, fetched and checked if there was none.

        Raises ObjectMissing, ObjectDamaged, StoreUnreadable, StoreUnwritable or StoreBusy.
        """
        with self._cache.using(digest, self._fetch) as folder:
            yield folder

    def verify(self, digest: str) -> None:
        """Read the copy again; a damaged one is forgotten, so that it is fetched again."""
        try:
            self._cache.store.verify(digest)
        except ObjectDamaged as error:
            self._cache.drop(digest)
            raise ObjectDamaged(error.message, "it is fetched again with the next load") from error

    def verify_original(self, digest: str) -> None:
        """Read the object itself through; raises ObjectMissing or ObjectDamaged."""
        files = self._look(digest)
        hashes = {}
        for name, file in files.items():
            source = _Arriving(self.bucket, self._key(digest, name), file.size)
            hashes[name] = hashlib.sha256()
            while piece := source.read(PIECE):
                hashes[name].update(piece)
        _check(digest, {name: each.hexdigest() for name, each in hashes.items()})

    def digests(self) -> Iterator[str]:
        """The digests of all objects, in order."""
        for digest, files in self.folders().items():
            if self._key(digest, CONFIG) in files:
                yield digest

    def folders(self) -> dict[str, dict[str, File]]:
        """The files of each object, also of incomplete ones, by digest and by key."""
        found: dict[str, dict[str, File]] = {}
        for key, file in sorted(self.bucket.list_all(OBJECTS).items()):
            digest = f"sha256:{key.split('/')[-2]}"
            if DIGEST.fullmatch(digest) and key.startswith(self._key(digest, "")):
                found.setdefault(digest, {})[key] = file
        return found

    def look_again(self, digest: str) -> dict[str, File]:
        """The files of one object, as `folders` has them."""
        return self.bucket.list(self._key(digest, "").rstrip("/"))

    def commit(self, staged: Staged, *, is_known: bool = False) -> str:
        """Send a staged copy; returns the digest.

        All of it, though the object may be there: it is then as young as a new one, for `gc`, and
        mended. `is_known`: a version has these bytes, so only what is missing is sent.
        """
        digest = digest_of(staged.hashes)
        there = self.look_again(digest) if is_known else {}
        for name in SENT:
            source, key = staged.path / name, self._key(digest, name)
            if name in staged.hashes and not _has(there, key, source):
                self.bucket.put(source, key)
        self._damaged.pop(digest, None)
        return digest

    def settle(self, staged: Staged) -> None:
        """Once a committed object has its version: send again what `gc` took just before."""
        self.commit(staged, is_known=True)

    def remove(self, digest: str) -> None:
        """Delete an object: its config first, without which it does not exist."""
        config = self._key(digest, CONFIG)
        self.bucket.remove(sorted(self.look_again(digest), key=lambda key: key != config))

    def _fetch(self, digest: str, folder: Path, reserve: Reserve) -> None:
        until, known = self._damaged.get(digest, (0.0, None))
        if known is not None and time.monotonic() < until:
            raise ObjectDamaged(known.message, known.hint)
        try:
            self._download(digest, folder, reserve)
        except ObjectDamaged as error:
            self._damaged[digest] = time.monotonic() + DAMAGED_SECONDS, error
            raise

    def _download(self, digest: str, folder: Path, reserve: Reserve) -> None:
        files = self._look(digest)
        reserve(sum(file.size for file in files.values()))
        hashes = {}
        for name, file in files.items():
            source = _Arriving(self.bucket, self._key(digest, name), file.size)
            hashed = hashlib.sha256()
            copy_bounded(source, folder / name, file.size, hashed.update)
            hashes[name] = hashed.hexdigest()
        _check(digest, hashes)

    def _look(self, digest: str) -> dict[str, File]:
        """The object's own files by name; raises ObjectMissing or ObjectDamaged."""
        there = self.look_again(digest)
        names = (name for name in (*COUNTED, PROVENANCE) if self._key(digest, name) in there)
        files = {name: there[self._key(digest, name)] for name in names}
        if CONFIG not in files:
            raise missing(digest)
        for name in SERVED:
            if name not in files:
                raise ObjectDamaged(f"object {digest} lacks {name}", SEND_AGAIN)
        for name, file in files.items():
            if file.size > MAX_BYTES[name]:
                raise ObjectDamaged(f"{name} of object {digest} is too large", SEND_AGAIN)
        return files

    @staticmethod
    def _key(digest: str, name: str) -> str:
        return f"{OBJECTS}/{folder_of(digest)}/{name}"


class _Arriving:
    """A file of the bucket, which is read in pieces of its size as it was listed."""

    def __init__(self, bucket: Bucket, key: str, size: int) -> None:
        self._bucket, self._key, self._size = bucket, key, size
        self._at = 0

    def read(self, _size: int) -> bytes:
        """The next piece, whatever was asked for; raises ObjectMissing or ObjectDamaged."""
        end = min(self._at + PIECE, self._size)
        if end == self._at:
            return b""
        try:
            piece = self._bucket.read(self._key, self._at, end)
        except FileNotFoundError:
            said = f"{self._key} was deleted while it was read"
            raise ObjectMissing(said, SEND_AGAIN) from None
        if len(piece) != end - self._at:
            raise ObjectDamaged(f"{self._key} has another size than before", SEND_AGAIN)
        self._at = end
        return piece


def _has(there: Mapping[str, File], key: str, source: Path) -> bool:
    return key in there and there[key].size == source.stat().st_size


def _check(digest: str, hashes: Mapping[str, str]) -> None:
    if digest_of(hashes) != digest:
        said = f"the bytes of object {digest} are not those that were published"
        raise ObjectDamaged(said, SEND_AGAIN)

"""The immutable files of adapters, kept under the digest of their bytes: here, or in a bucket."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from adapters.store.bucket import Bucket, parse_place
from adapters.store.cache import Cache
from adapters.store.shared import SharedStore
from adapters.store.store import Staged, Store, digest_of

__all__ = ["AnyStore", "Bucket", "Place", "Staged", "Store", "digest_of", "open_store"]
__all__ += ["parse_place"]

Place = Path | Bucket
AnyStore = Store | SharedStore

CACHE = Path(".lorry/cache/store")
CACHE_VARIABLE = "LORRY_STORE_CACHE"
CACHE_GIB = 10.0


def open_store(
    place: Place,
    *,
    cache: Path | None = None,
    cache_gib: float = CACHE_GIB,
    needed: Callable[[], Collection[str]] = tuple,
) -> AnyStore:
    """The store in a folder, or in a bucket with a cache of at most `cache_gib` in a folder.

    `needed` returns the digests that are in use for longer than `using` says, such as by an engine.
    """
    if isinstance(place, Path):
        return Store(place)
    folder = cache or Path(os.environ.get(CACHE_VARIABLE) or CACHE)
    return SharedStore(place, Cache(folder, int(cache_gib * (1 << 30)), needed))

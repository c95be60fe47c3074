"""The immutable files of adapters, kept under the digest of their bytes."""

from adapters.store.store import Staged, Store, digest_of

__all__ = ["Staged", "Store", "digest_of"]

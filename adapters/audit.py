"""Compares what the catalog says with what the store holds, object by object. Changes nothing."""

from dataclasses import dataclass
from typing import Literal

from adapters.catalog import Catalog
from adapters.errors import ObjectDamaged, ObjectMissing
from adapters.store import Store


@dataclass(frozen=True, slots=True)
class Finding:
    """One object and how it is. An orphan is whole, but no version names it: harmless."""

    digest: str
    status: Literal["ok", "orphan", "damaged", "missing"]
    labels: tuple[str, ...]
    detail: str = ""

    @property
    def is_bad(self) -> bool:
        return self.status in ("damaged", "missing")


def audit(store: Store, catalog: Catalog) -> list[Finding]:
    """Read every object again, and look for the object of every version."""
    # Objects first: one that is published meanwhile is then never taken for an orphan.
    digests = set(store.digests())
    labels: dict[str, list[str]] = {}
    for version in catalog.list_versions():
        labels.setdefault(version.digest, []).append(version.label)
    everything = sorted(digests | labels.keys())
    return [_examine(store, digest, tuple(labels.get(digest, ()))) for digest in everything]


def _examine(store: Store, digest: str, labels: tuple[str, ...]) -> Finding:
    try:
        store.verify(digest)
    except ObjectMissing as error:
        return Finding(digest, "missing", labels, error.message)
    except ObjectDamaged as error:
        return Finding(digest, "damaged", labels, error.message)
    return Finding(digest, "ok" if labels else "orphan", labels)

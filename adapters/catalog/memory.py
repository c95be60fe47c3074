"""What a catalog remembers of the database, to answer names without a query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from adapters.catalog.aliases import Alias
from adapters.catalog.versions import Meaning, Published, interpret
from adapters.names import Reference


class Shelf(NamedTuple):
    """All that can be said of one name: digests by number, and aliases. Both are empty for none."""

    digests: Mapping[int, str]
    aliases: Sequence[Alias]


@dataclass(slots=True)
class Known:
    """Cached answers, valid until the catalog changes.

    An unknown reference is answered from memory too: from its name's shelf, or, for an unknown
    name, from the set of all names, which one query fills.
    """

    meanings: dict[Reference, Meaning] = field(default_factory=dict)
    shelves: dict[str, Shelf] = field(default_factory=dict)
    names: frozenset[str] | None = None
    published: tuple[Published, ...] | None = None

    def find(self, reference: Reference) -> Meaning | None:
        """None where only a query can tell; raises AdapterNotFound or AmbiguousDigest."""
        if found := self.meanings.get(reference):
            return found
        shelf = self.shelves.get(reference.name)
        if shelf is None and self.names is not None and reference.name not in self.names:
            shelf = Shelf({}, ())
        if shelf is not None:
            interpret(reference, *shelf)
        return None

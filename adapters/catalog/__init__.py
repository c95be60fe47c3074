"""Which adapters exist, and which immutable version a name means."""

from adapters.catalog.aliases import Alias, Target
from adapters.catalog.catalog import Catalog
from adapters.catalog.history import Event
from adapters.catalog.versions import AdapterVersion, Published, VersionKey

__all__ = ["AdapterVersion", "Alias", "Catalog", "Event", "Published", "Target", "VersionKey"]

"""All keys of a catalog at one moment, by the digests of their secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from adapters.keys.record import Key
from adapters.keys.secret import digest_of


@dataclass(frozen=True, slots=True)
class Held:
    """One secret of a key. `until`: the end of the overlap, for one that was rotated."""

    key: Key
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Keyring:
    secrets: Mapping[str, Held] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is any key, in force or not: the first one shuts the server for good."""
        return bool(self.secrets)

    def __iter__(self) -> Iterator[Key]:
        """Each key once."""
        return iter({held.key.id: held.key for held in self.secrets.values()}.values())

    def find(self, secret: str) -> Held | None:
        """Whose secret it is, in force or not."""
        return self.secrets.get(digest_of(secret))

    def is_in_force(self, digest: str, now: datetime | None = None) -> bool:
        """Whether the secret of this digest opens anything."""
        held, now = self.secrets.get(digest), now or datetime.now(UTC)
        if held is None or (held.until is not None and held.until <= now):
            return False
        return held.key.status(now) == "active"

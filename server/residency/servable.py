"""Which versions this server takes at all, by what the catalog says of them."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.catalog import AdapterVersion
from server.errors import AdapterUnusable


@dataclass(frozen=True, slots=True)
class Servable:
    """`base_digest` is that of the served base; None lets versions for other bases through."""

    max_rank: int
    base_digest: str | None = None

    def check(self, version: AdapterVersion) -> None:
        """Raises AdapterUnusable."""
        if version.rank > self.max_rank:
            raise AdapterUnusable(
                f"The adapter {version.label} has rank {version.rank}; this server serves up to "
                f"{self.max_rank}. Start it with a larger --max-lora-rank."
            )
        if None not in (wanted := {self.base_digest, version.base_digest}) and len(wanted) > 1:
            raise AdapterUnusable(
                f"The adapter {version.label} was published for another base ({version.base}). "
                "Publish it for this one, or start the server with --allow-base-mismatch.",
                code="base_mismatch",
            )
